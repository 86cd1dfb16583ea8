//! The VMM's shared guest memory, read from outside through `/proc/PID/fd`.
//!
//! What is in there is what the VMM, its devices and everybody who gets hold of the process could read.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{Context, ensure};
use hypervisor::GpaRange;
use memchr::memmem::Finder;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::process::Pid;

/// What the link of the file's descriptor names.
const NAME: &str = "/memfd:guest-ram (deleted)";

/// How much is searched at once.
const CHUNK: usize = 1 << 20;

/// The file behind the guest's shared pages.
#[derive(Debug)]
pub struct SharedMemoryFile {
    file: File,
}

impl SharedMemoryFile {
    /// That of a VMM.
    ///
    /// # Errors
    /// A process that has no such file, or several.
    pub fn of(pid: Pid) -> anyhow::Result<Self> {
        let folder = format!("/proc/{}/fd", pid.as_raw_nonzero());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
            let path = entry?.path();
            // Descriptors may be closed meanwhile.
            if std::fs::read_link(&path).is_ok_and(|target| target.as_os_str() == NAME) {
                files.push(path);
            }
        }
        ensure!(files.len() == 1, "process {} has {} files {NAME:?}, expected one", pid.as_raw_nonzero(), files.len());
        let path = &files[0];
        Ok(Self { file: File::open(path).with_context(|| format!("cannot open {}", path.display()))? })
    }

    /// How much memory it takes, in bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn allocated(&self) -> anyhow::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// All of a range is this word, over and over. `offset` is that of its first byte in the file.
    ///
    /// # Errors
    /// The first word that differs.
    pub fn holds(&self, offset: u64, size: u64, word: u64) -> anyhow::Result<()> {
        let mut bytes = vec![0; usize::try_from(size)?];
        self.file.read_exact_at(&mut bytes, offset)?;
        let words = bytes.chunks_exact(8).map(|chunk| chunk.try_into().map(u64::from_le_bytes));
        for (number, found) in words.enumerate() {
            let (found, at) = (found?, offset + 8 * number as u64);
            ensure!(found == word, "the VMM's shared memory holds {found:#x} at offset {at:#x}, expected {word:#x}");
        }
        Ok(())
    }

    /// As [`SharedMemoryFile::holds`], for RAM below the hole before 4 GiB: the file has it at the guest's address.
    ///
    /// # Errors
    /// The first word that differs.
    pub fn holds_low(&self, range: GpaRange, word: u64) -> anyhow::Result<()> {
        self.holds(range.start(), range.len(), word)
    }

    /// The word is nowhere in it, at any address.
    ///
    /// # Errors
    /// Where it is.
    pub fn never_holds(&self, word: u64) -> anyhow::Result<()> {
        match self.find(&word.to_le_bytes())? {
            Some(offset) => anyhow::bail!("the VMM's shared memory holds {word:#x} at offset {offset:#x}"),
            None => Ok(()),
        }
    }

    /// The first place of some bytes.
    fn find(&self, needle: &[u8]) -> anyhow::Result<Option<u64>> {
        let finder = Finder::new(needle);
        let mut chunk = vec![0; CHUNK + needle.len() - 1];
        let mut end = 0;
        while let Some(start) = self.seek(SeekFrom::Data(end))? {
            end = self.seek(SeekFrom::Hole(start))?.context("data without an end")?;
            for offset in (start..end).step_by(CHUNK) {
                let count = self.file.read_at(&mut chunk, offset)?;
                if let Some(found) = finder.find(&chunk[..count]) {
                    return Ok(Some(offset + found as u64));
                }
            }
        }
        Ok(None)
    }

    fn seek(&self, to: SeekFrom) -> anyhow::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, to) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error).context("cannot look for data"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;

    #[test]
    fn bytes_are_found_wherever_they_are() {
        let file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(64 << 20).unwrap();
        let memory = SharedMemoryFile { file };
        assert_eq!(memory.find(b"needle").unwrap(), None);
        for offset in [0, (40 << 20) + 5, (40 << 20) + CHUNK as u64 - 3, (64 << 20) - 6] {
            memory.file.write_all_at(b"needle", offset).unwrap();
            assert_eq!(memory.find(b"needle").unwrap(), Some(offset));
            memory.file.write_all_at(b"nothing", offset.saturating_sub(1)).unwrap();
        }
    }

    #[test]
    fn this_process_has_no_guest_memory() {
        assert!(SharedMemoryFile::of(rustix::process::getpid()).is_err());
    }
}
