//! The initramfs of the Debian system: busybox, what is needed to see the disk, and the keys of this run.

use std::fs;

use anyhow::{Context, Result};

use super::System;
use super::keys::Keys;
use crate::cpio::Archive;

const INIT: &str = include_str!("../../debian/init");

/// The archive, with `busybox`, a statically linked program.
pub fn build(busybox: &[u8], system: &System, keys: &Keys) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.directory("dev", 0o755);
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.directory("bin", 0o755);
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.directory("modules", 0o755);
    for (index, path) in system.modules.iter().enumerate() {
        let name = path.file_name().and_then(|name| name.to_str()).context("a module has a name")?;
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.file(&format!("modules/{index:02}-{name}"), 0o644, &content);
    }
    archive.directory("keys", 0o700);
    for (name, content) in keys.for_guest()? {
        archive.file(&format!("keys/{name}"), 0o600, &content);
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inside::markers;

    #[test]
    fn init_speaks_the_words_that_the_driver_waits_for() {
        for words in [format!("echo \"{}\"", markers::INIT), format!("echo \"{}failed: ", markers::PREFIX)] {
            assert!(INIT.contains(&words), "{words}");
        }
    }

    #[test]
    fn shell_of_init_accepts_the_script() {
        let checked = std::process::Command::new("sh").args(["-n", "-c", INIT]).status().unwrap();
        assert!(checked.success());
    }
}
