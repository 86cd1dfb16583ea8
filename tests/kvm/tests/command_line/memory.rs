//! Sizes of memory that no guest can have.

use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use kvm_tests::requirement::{require, require_caps};

use crate::{Test, Umbra};

pub const TESTS: &[Test] = &[
    ("sizes_that_no_guest_can_have_are_errors", ordinary),
    ("sizes_that_no_unmappable_guest_can_have_are_errors", unmappable),
    ("more_memory_than_a_slot_takes_is_refused_before_anything_is_set_page_by_page", too_large_for_a_slot),
    ("memory_that_the_kernel_does_not_fit_into_is_an_error", too_small_for_the_kernel),
];

fn ordinary() -> anyhow::Result<()> {
    require_caps(&[])?;
    sizes("none", &Umbra::new()?)
}

fn unmappable() -> anyhow::Result<()> {
    require(require_caps(&[])?.caps(), Isolation::Software.requirements())?;
    let umbra = Umbra::new()?;
    sizes("software", &umbra)?;
    // The C-bit takes the upper half of the address space.
    let arguments = ["--memory", "size=128T,unmappable=on"];
    umbra.rejects(&mut umbra.run(&arguments), 1, &["memory", "128 TiB", "too large", "isolation=software", "at most"])
}

fn too_large_for_a_slot() -> anyhow::Result<()> {
    require(require_caps(&[])?.caps(), Isolation::Software.requirements())?;
    let umbra = Umbra::new()?;
    let words = ["cannot set up guest memory", "2147483647 pages of 4 KiB", "give the guest less memory"];
    umbra.rejects(&mut umbra.run(&["--memory", "size=9T,unmappable=on"]), 1, &words)?;
    // Beyond what the attribute map counts.
    umbra.rejects(&mut umbra.run(&["--memory", "size=60T,unmappable=on"]), 1, &["attribute map", "at most"])
}

fn sizes(isolation: &str, umbra: &Umbra) -> anyhow::Result<()> {
    let cases: [(&str, &str, &str); 9] = [
        ("0", "0 bytes", "too small"),
        ("0T", "0 bytes", "too small"),
        ("1", "1 byte", "whole number of 4096-byte pages"),
        ("4097", "4097 bytes", "whole number of 4096-byte pages"),
        ("1000000", "1000000 bytes", "whole number of 4096-byte pages"),
        ("4K", "4 KiB", "too small"),
        ("1M", "1 MiB", "needs at least 1028 KiB"),
        ("4096T", "4 PiB", "too large"),
        ("16777215T", "16777215 TiB", "too large"),
    ];
    for (size, bytes, reason) in cases {
        let memory = format!("size={size}");
        let platform = format!("isolation={isolation}");
        let arguments = ["--memory", &memory, "--platform", &platform];
        umbra.rejects(&mut umbra.run(&arguments), 1, &["memory", bytes, reason])?;
    }
    Ok(())
}

fn too_small_for_the_kernel() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    umbra.rejects(
        &mut umbra.run(&["--memory", "size=8M"]),
        1,
        &["kernel", "0x1000000", "give the guest at least", "MiB"],
    )
}
