//! The guest's initramfs: busybox, the modules that a test names, and its script as the first process.

use std::path::Path;

use anyhow::Context;

use super::cpio::Archive;

/// What every script begins with.
const PREAMBLE: &str = "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
say() { echo \"test: $*\"; }
";

/// And what it ends with.
const END: &str = "
say end
poweroff -f
";

/// The archive. Modules are loaded in the order in which they are named, before the script goes on.
///
/// # Errors
/// A module or busybox that isn't there.
pub fn build(folder: &Path, modules: &[&str], script: &str) -> anyhow::Result<Vec<u8>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::new();
    archive.directory("dev", 0o755);
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.directory("bin", 0o755);
    archive.file("bin/busybox", 0o755, &read(&folder.join("busybox"))?);
    archive.directory("modules", 0o755);
    let mut text = PREAMBLE.to_owned();
    for module in modules {
        let name = format!("{module}.ko");
        archive.file(&format!("modules/{name}"), 0o644, &read(&folder.join("modules").join(&name))?);
        text.push_str(&format!("insmod /modules/{name} || say cannot load {name}\n"));
    }
    text.push_str(script);
    text.push_str(END);
    archive.file("init", 0o755, text.as_bytes());
    Ok(archive.finish())
}
