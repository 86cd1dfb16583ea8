//! The seal of a cache entry: `SHA256SUMS`, in the format of sha256sum(1), with a line for every file of the entry.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

const NAME: &str = "SHA256SUMS";

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Writes the checksums of all files in `folder` and makes sure that everything is on the disk.
pub fn seal(folder: &Path) -> Result<()> {
    let mut sums = String::new();
    for file in files(folder)? {
        let name = file.strip_prefix(folder)?.to_str().context("a file name is not UTF-8")?;
        ensure!(!name.contains('\n'), "a file name has a line break");
        sums.push_str(&format!("{}  {name}\n", checksum(&file)?));
        File::open(&file)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let path = folder.join(NAME);
    let mut seal = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    seal.write_all(sums.as_bytes())
        .and_then(|()| seal.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Whether `folder` is there. An error names the first thing that is not as it was sealed.
pub fn verify(folder: &Path) -> Result<bool> {
    if fs::symlink_metadata(folder).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(false);
    }
    let sums = fs::read_to_string(folder.join(NAME)).context("its checksums cannot be read")?;
    ensure!(!sums.is_empty(), "its checksums are empty");
    for line in sums.lines() {
        let Some((sum, name)) = line.split_once("  ") else {
            bail!("its checksums are damaged");
        };
        let now = checksum(&folder.join(name)).with_context(|| format!("{name} cannot be read"))?;
        ensure!(now == sum, "{name} has changed");
    }
    Ok(true)
}

/// All regular files below `folder`, sorted. Symbolic links are not followed.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

fn checksum(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("a"), "alpha").unwrap();
        fs::write(folder.path().join("sub/b"), "beta").unwrap();
        seal(folder.path()).unwrap();
        folder
    }

    #[test]
    fn the_sum_is_sha_256() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_sealed_folder_verifies() {
        assert!(verify(sealed().path()).unwrap());
    }

    #[test]
    fn a_folder_that_is_not_there_is_no_error() {
        assert!(!verify(Path::new("/nonexistent/entry")).unwrap());
    }

    #[test]
    fn every_kind_of_damage_is_noticed() {
        type Damage = fn(&Path) -> io::Result<()>;
        let damages: [(&str, Damage); 6] = [
            ("a has changed", |folder| fs::write(folder.join("a"), "alphA")),
            ("sub/b has changed", |folder| fs::write(folder.join("sub/b"), "")),
            ("sub/b cannot be read", |folder| fs::remove_file(folder.join("sub/b"))),
            ("checksums cannot be read", |folder| fs::remove_file(folder.join(NAME))),
            ("checksums are empty", |folder| fs::write(folder.join(NAME), "")),
            ("checksums are damaged", |folder| fs::write(folder.join(NAME), "ab")),
        ];
        for (expected, damage) in damages {
            let folder = sealed();
            damage(folder.path()).unwrap();
            let error = format!("{:#}", verify(folder.path()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
