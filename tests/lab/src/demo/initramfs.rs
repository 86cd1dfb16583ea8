//! The guest's initramfs: busybox, the demonstration's init script and a console device.
//!
//! It is not compressed: with gzip, 2 MB become 1 MB, and the time to the guest's init stays the same within 0.1 s.

use crate::cpio::Archive;

/// What the guest runs first.
const INIT: &str = include_str!("guest_init.sh");

/// The archive, with `busybox`, a statically linked program, as the guest's only binary.
pub fn build(busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.directory("dev", 0o755);
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.directory("bin", 0o755);
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inside::markers;

    #[test]
    fn init_speaks_the_words_that_the_driver_waits_for() {
        for marker in [markers::INIT, markers::SHELL_ENDED] {
            assert!(INIT.contains(&format!("echo \"{marker}\"")), "{marker}");
        }
        let canary_in_place = markers::CANARY_IN_PLACE.replace("1048576", "$(wc -c </canary)");
        assert!(INIT.contains(&format!("echo \"{canary_in_place}\"")), "{canary_in_place}");
        assert!(INIT.contains(&format!("{}*)", markers::SEED_PARAMETER)));
    }

    #[test]
    fn shell_of_init_accepts_the_script() {
        let checked = std::process::Command::new("sh").args(["-n", "-c", INIT]).status().unwrap();
        assert!(checked.success());
    }
}
