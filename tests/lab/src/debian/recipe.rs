//! What goes into an image, and the name that follows from it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::sha256;
use crate::packages::Candidate;

/// The script that makes the image.
pub const BUILD: &str = include_str!("../../debian/build");

/// What is laid over the system's /etc: the path there, and the content.
const SETTINGS: [(&str, &str); 6] = [
    ("hostname", include_str!("../../debian/etc/hostname")),
    ("hosts", include_str!("../../debian/etc/hosts")),
    ("ssh/sshd_config.d/lab.conf", include_str!("../../debian/etc/ssh/sshd_config.d/lab.conf")),
    ("systemd/network/lab.network", include_str!("../../debian/etc/systemd/network/lab.network")),
    ("systemd/journald.conf.d/lab.conf", include_str!("../../debian/etc/systemd/journald.conf.d/lab.conf")),
    ("systemd/system.conf.d/lab.conf", include_str!("../../debian/etc/systemd/system.conf.d/lab.conf")),
];

/// All that decides what an image is. Of the packages it is the names: an image is as old as its cache entry.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The release of Debian.
    pub suite: String,
    /// Packages beyond the minimum.
    pub packages: &'static str,
    /// The package of the kernel whose modules are in it.
    pub kernel: Candidate,
}

impl Recipe {
    /// The inputs, for people.
    pub fn text(&self) -> String {
        let Self { suite, packages, kernel } = self;
        format!("Debian {suite} with {packages}\n{} {}\n", kernel.name, kernel.version)
    }

    /// The name of the cache's entry.
    pub fn entry(&self) -> PathBuf {
        let text = self.text();
        let settings = SETTINGS.iter().flat_map(|(path, content)| [*path, *content]);
        // With lengths, no two lists of inputs make the same text.
        let all: String = [text.as_str(), BUILD]
            .into_iter()
            .chain(settings)
            .map(|input| format!("{}:{input}", input.len()))
            .collect();
        Path::new("debian").join(&sha256(all.as_bytes())[..16])
    }
}

/// Writes the settings as files below `folder`.
pub fn write_settings(folder: &Path) -> Result<()> {
    for (path, content) in SETTINGS {
        let path = folder.join(path);
        let context = || format!("cannot write {}", path.display());
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, content)).with_context(context)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let kernel = Candidate { name: "linux-image-6.12".into(), version: "6.12.1-1".into(), size: 5 };
        Recipe { suite: "bookworm".into(), packages: "udev", kernel }
    }

    #[test]
    fn the_name_changes_with_every_input() {
        let first = recipe().entry();
        assert_eq!(first, recipe().entry());
        let changes: [fn(&mut Recipe); 4] = [
            |recipe| recipe.suite = "trixie".into(),
            |recipe| recipe.packages = "udev,dbus",
            |recipe| recipe.kernel.version = "6.12.2-1".into(),
            |recipe| recipe.kernel.name = "linux-image-6.13".into(),
        ];
        for change in changes {
            let mut other = recipe();
            change(&mut other);
            assert_ne!(first, other.entry());
        }
    }

    #[test]
    fn the_shell_accepts_the_script() {
        let checked = std::process::Command::new("sh").args(["-n", "-c", BUILD]).status().unwrap();
        assert!(checked.success());
    }

    #[test]
    fn settings_lie_where_they_belong() {
        let folder = tempfile::tempdir().unwrap();
        write_settings(folder.path()).unwrap();
        let network = fs::read_to_string(folder.path().join("systemd/network/lab.network")).unwrap();
        assert!(network.contains(&format!("Address={}/", crate::inside::full::network::GUEST)), "{network}");
    }
}
