//! What the guests of tests/kvm are made of, in one folder of the cache: Debian's kernel, the modules that tests load, and
//! busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Found, sha256};
use crate::options::Options;
use crate::packages::{candidate, download, fetch_deb, newest_matching, unpack};

/// The kernel's package: the one that `cargo lab demo` boots.
const KERNEL: &str = "linux-image-6.12*-cloud-amd64";
/// Modules that tests load.
const MODULES: [&str; 11] = [
    "button",
    "evdev",
    "failover",
    "net_failover",
    "virtio-rng",
    "virtio_balloon",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "vmw_vsock_virtio_transport_common",
    "vsock",
];
/// What is left out of the package when it is unpacked.
const LEFT_OUT: [&str; 2] = ["./usr/share/doc", "./usr/share/man"];

/// The folder, with `vmlinuz`, `busybox` and `modules/NAME.ko`.
pub fn prepare(options: &Options) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let busybox = fetch_deb(options, &cache, "busybox-static")?;
    let wanted = candidate(options, &cache, &newest_matching(options, KERNEL)?)?;
    // The names of all modules would be too long for that of a folder.
    let modules = &sha256(MODULES.join("\n").as_bytes())[..16];
    let entry = Path::new("guests").join(format!("{}_{}_{modules}", wanted.name, wanted.version));
    if let Found::Entry(folder) = cache.find(&entry) {
        return Ok(folder);
    }
    let lock = cache.lock("guests", "makes a guest for tests")?;
    cache.require_space(wanted.size.saturating_mul(6), "unpacking a kernel with its modules")?;
    let work = cache.work_folder(&lock, "guests")?;
    let (_, archive) = download(options, &cache, &wanted, work.path())?;
    let unpacked = work.path().join("unpacked");
    let folder = work.path().join("guest");
    let modules = folder.join("modules");
    for new in [&unpacked, &modules] {
        fs::create_dir_all(new).with_context(|| format!("cannot create {}", new.display()))?;
    }
    unpack(&archive, &unpacked, &LEFT_OUT)?;
    let mut files = Vec::new();
    walk(&unpacked, &mut files)?;
    let find = |what: &dyn Fn(&str) -> bool| {
        files.iter().find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(what))
    };
    let kernel = find(&|name| name.starts_with("vmlinuz-")).context("the kernel's package has no kernel")?;
    copy(kernel, &folder.join("vmlinuz"))?;
    for module in MODULES {
        let wanted = format!("{module}.ko");
        let found = find(&|name| name.strip_prefix(&wanted).is_some_and(|rest| matches!(rest, "" | ".xz")));
        let found = found.with_context(|| format!("the kernel's package has no module {module}"))?;
        decompress(found, &modules.join(wanted))?;
    }
    let places = ["bin/busybox", "usr/bin/busybox"].map(|name| busybox.join(name));
    let program = places.iter().find(|path| path.is_file()).context("the package busybox-static has no busybox")?;
    copy(program, &folder.join("busybox"))?;
    cache.publish(&lock, &folder, &entry)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// A module as the kernel takes it.
fn decompress(module: &Path, to: &Path) -> Result<()> {
    if module.extension().is_some_and(|extension| extension == "ko") {
        return copy(module, to);
    }
    let context = || format!("cannot decompress {}", module.display());
    let output = fs::File::create(to).with_context(context)?;
    let mut xz = Command::new("xz");
    let status = xz.arg("-dc").arg(module).stdin(Stdio::null()).stdout(output).status().with_context(context)?;
    ensure!(status.success(), "{}: xz ended with {status}", context());
    Ok(())
}

/// All files below a folder. Links are left out.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let kind = entry.file_type().with_context(context)?;
        if kind.is_dir() {
            walk(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
