//! Disks of the guest, in memory of the machine that runs it.
//!
//! All of a disk is allocated when it is made. So a full machine is noticed here and not by the guest, and what the guest
//! writes later is charged to nobody's control group ([`super::group`]).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};

use super::peer::pump;

const PIECE: usize = 1 << 20;

/// A disk of zeros.
pub fn create(path: &Path, bytes: u64) -> Result<File> {
    let context = || format!("cannot make a disk of {} MiB at {}", bytes >> 20, path.display());
    let file = File::create_new(path).with_context(context)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes).with_context(context)?;
    Ok(file)
}

/// A disk like `image`.
pub fn copy(image: &Path, path: &Path) -> Result<()> {
    let context = || format!("cannot copy {} to {}", image.display(), path.display());
    let mut from = File::open(image).with_context(context)?;
    let mut to = create(path, from.metadata().with_context(context)?.len())?;
    let mut piece = vec![0; PIECE];
    loop {
        let length = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(context),
        };
        let data = &piece[..length];
        let moved = if data.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(length as i64)).map(|_| ())
        } else {
            to.write_all(data)
        };
        moved.with_context(context)?;
    }
}

/// The checksum of the first bytes of a disk.
pub fn sha256(path: &Path, bytes: u64) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    Ok(pump(&mut file, None, bytes).with_context(context)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_is_equal_and_all_of_it_is_allocated() {
        let folder = tempfile::tempdir().unwrap();
        let (image, disk) = (folder.path().join("image"), folder.path().join("disk"));
        let mut content = vec![0; 3 * PIECE + 5];
        content[2 * PIECE + 7] = 1;
        std::fs::write(&image, &content).unwrap();
        copy(&image, &disk).unwrap();
        assert_eq!(std::fs::read(&disk).unwrap(), content);
        assert!(std::fs::metadata(&disk).unwrap().blocks() * 512 >= content.len() as u64);
        assert_eq!(sha256(&disk, PIECE as u64).unwrap(), crate::cache::sha256(&content[..PIECE]));
        assert!(copy(&image, &disk).is_err(), "a disk that is there is not overwritten");
    }
}
