//! The keys of one run: the guest's host key, and the user's.
//!
//! They are made anew for each run and lie in its folder, which is gone afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Where the keys are.
#[derive(Debug)]
pub struct Keys {
    host: PathBuf,
    login: PathBuf,
}

impl Keys {
    /// Makes keys in `folder`.
    pub fn make(folder: &Path) -> Result<Self> {
        let key = |name: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            let output = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
                .arg(&path)
                .stdin(Stdio::null())
                .output()
                .context("cannot run ssh-keygen")?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "ssh-keygen failed: {}", said.trim());
            Ok(path)
        };
        Ok(Self { host: key("host-key")?, login: key("login-key")? })
    }

    /// The user's private key.
    pub fn login(&self) -> &Path {
        &self.login
    }

    /// What the guest gets: names and contents.
    pub fn for_guest(&self) -> Result<[(&'static str, Vec<u8>); 2]> {
        Ok([("host_key", read(&self.host)?), ("authorized_keys", read(&public(&self.login))?)])
    }

    /// A file of known hosts by which ssh knows the guest at `address`.
    pub fn write_known_hosts(&self, address: &str, path: &Path) -> Result<()> {
        let key = read(&public(&self.host))?;
        let line = [address.as_bytes(), b" ", &key].concat();
        fs::write(path, line).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn public(key: &Path) -> PathBuf {
    key.with_extension("pub")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_gets_its_private_key_and_the_users_public_one() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys { host: folder.path().join("host-key"), login: folder.path().join("login-key") };
        for (name, content) in [
            ("host-key", "host, private"),
            ("host-key.pub", "ssh-ed25519 AAAA host\n"),
            ("login-key.pub", "ssh-ed25519 BBBB"),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let expected = [("host_key", b"host, private".to_vec()), ("authorized_keys", b"ssh-ed25519 BBBB".to_vec())];
        assert_eq!(keys.for_guest().unwrap(), expected);
        let known = folder.path().join("known");
        keys.write_known_hosts("10.0.0.2", &known).unwrap();
        assert_eq!(fs::read_to_string(known).unwrap(), "10.0.0.2 ssh-ed25519 AAAA host\n");
    }
}
