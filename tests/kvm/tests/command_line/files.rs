//! Kernels, initramfs and command lines that can't be booted.

use kvm_tests::hostile::{vmlinux, vmlinux_for};
use kvm_tests::requirement::require_caps;

use crate::{Test, Umbra};

pub const TESTS: &[Test] = &[
    ("kernels_that_cannot_be_read_are_named", unreadable_kernels),
    ("files_that_are_no_kernel_are_told_apart", foreign_kernels),
    ("a_truncated_kernel_is_an_error_at_any_length", truncated_kernels),
    ("an_initramfs_that_is_missing_or_does_not_fit_is_an_error", initramfs),
    ("files_that_are_too_large_or_have_no_end_are_errors", endless_files),
    ("a_command_line_that_is_too_long_is_an_error", command_line),
];

/// ELF's number for arm64.
const ARM64: u16 = 183;

fn unreadable_kernels() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let missing = umbra.path("missing");
    let inside_a_file = umbra.kernel.join("kernel");
    let folder = umbra.path("folder");
    std::fs::create_dir(&folder)?;
    for (path, reason) in [(missing, "No such file"), (inside_a_file, "Not a directory"), (folder, "is a directory")] {
        let name = path.display().to_string();
        umbra.rejects(&mut umbra.run_kernel(&path, &[]), 1, &["cannot read kernel", &name, reason])?;
    }
    Ok(())
}

fn foreign_kernels() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    // A gzip header, and what is no deflate stream behind it.
    let mut gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    gzip.extend((0..9000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8));
    let remedy = "pass an x86-64 Linux vmlinuz";
    let cases: [(&str, Vec<u8>, &[&str]); 6] = [
        ("empty", Vec::new(), &["empty", remedy]),
        ("text", "This is no kernel.\n".repeat(100).into(), &["text", remedy]),
        ("script", b"#!/bin/sh\necho I am a kernel\n".to_vec(), &[remedy]),
        ("arm64", vmlinux_for(ARM64), &["arm64", "pass an x86-64 kernel"]),
        ("gzip", gzip, &["gzip", remedy]),
        ("zeros", vec![0; 1 << 20], &["has no Linux boot header", remedy]),
    ];
    for (name, contents, words) in cases {
        let path = umbra.file(name, &contents)?;
        let name = path.display().to_string();
        let mut words = words.to_vec();
        words.extend(["cannot load kernel", &name]);
        umbra.rejects(&mut umbra.run_kernel(&path, &[]), 1, &words)?;
    }
    Ok(())
}

fn truncated_kernels() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let whole = vmlinux();
    for length in [1, 4, 63, 64, 119, 120, 121, whole.len() / 2, whole.len() - 1] {
        let path = umbra.file("truncated", &whole[..length])?;
        umbra.rejects(&mut umbra.run_kernel(&path, &[]), 1, &["cannot load kernel", &path.display().to_string()])?;
    }
    let path = umbra.file("truncated", &whole[..whole.len() - 1])?;
    umbra.rejects(&mut umbra.run_kernel(&path, &[]), 1, &["truncated"])
}

fn initramfs() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let missing = umbra.path("missing").display().to_string();
    umbra.rejects(
        &mut umbra.run(&["--initramfs", &missing]),
        1,
        &["cannot read initramfs", &missing, "No such file"],
    )?;
    let large = sparse_file(&umbra, 48 << 20)?;
    let arguments = ["--memory", "size=64M", "--initramfs", &large];
    umbra.rejects(&mut umbra.run(&arguments), 1, &["initramfs", "48 MiB", "more memory or a smaller initramfs"])
}

fn endless_files() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let larger_than_ram = sparse_file(&umbra, 1 << 40)?;
    for (initramfs, words) in [("/dev/zero", ["no regular file"; 2]), (&larger_than_ram, ["64 MiB", "pass a smaller"])]
    {
        let arguments = ["--memory", "size=64M", "--initramfs", initramfs];
        umbra.rejects(&mut umbra.run(&arguments), 1, &["initramfs", initramfs, words[0], words[1]])?;
    }
    umbra.rejects(
        &mut umbra.run_kernel(larger_than_ram.as_ref(), &[]),
        1,
        &["kernel", &larger_than_ram, "pass a smaller"],
    )
}

/// A file of this many bytes that takes no room.
fn sparse_file(umbra: &Umbra, size: u64) -> anyhow::Result<String> {
    let path = umbra.file("large", &[])?;
    std::fs::File::options().write(true).open(&path)?.set_len(size)?;
    Ok(path.display().to_string())
}

fn command_line() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let long = "x".repeat(2048);
    umbra.rejects(&mut umbra.run(&["--cmdline", &long]), 1, &["command line", "2048", "2047"])
}
