//! The guest's initramfs: busybox, the modules and programs that a test names, and its script as the first process.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::cpio::Archive;
use super::program::libraries;

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

/// The archive. Modules are loaded in the order in which they are named, before the script goes on. Programs of this machine
/// are found by their names.
///
/// # Errors
/// A module, a program or busybox that isn't there.
pub fn build(folder: &Path, modules: &[&str], programs: &[&Path], script: &str) -> anyhow::Result<Vec<u8>> {
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
    add_programs(&mut archive, programs)?;
    text.push_str(script);
    text.push_str(END);
    archive.file("init", 0o755, text.as_bytes());
    Ok(archive.finish())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Adds programs, and what they are linked to at its own places.
fn add_programs(archive: &mut Archive, programs: &[&Path]) -> anyhow::Result<()> {
    let mut all = BTreeSet::new();
    for program in programs {
        let name = program.file_name().with_context(|| format!("{} is no program", program.display()))?;
        archive.file(&format!("bin/{}", name.display()), 0o755, &read(program)?);
        all.extend(libraries(program)?);
    }
    let folders: BTreeSet<&Path> = all.iter().flat_map(|path: &PathBuf| path.ancestors().skip(1)).collect();
    // Parents come before what they hold.
    for folder in folders.into_iter().filter(|folder| folder.parent().is_some() && *folder != Path::new("/bin")) {
        archive.directory(&folder.to_string_lossy(), 0o755);
    }
    for path in &all {
        archive.file(&path.to_string_lossy(), 0o755, &read(path)?);
    }
    Ok(())
}
