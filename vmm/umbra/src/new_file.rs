//! A file that a command writes, if the command gets so far.
//!
//! It is opened early, so that a path that can't be written is an error before anything is done, and only then. Unless it
//! is kept, nothing has happened: a file that was there is as it was, one that was not is gone.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// The file.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// What to remove if it is not kept.
    made: Option<PathBuf>,
}

impl NewFile {
    /// Opens it for writing.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true);
        match options.clone().create_new(true).open(path) {
            Ok(file) => Ok(Self { file, made: Some(path.to_owned()) }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A link to nowhere is there, too.
                Ok(Self { file: options.create(true).truncate(false).open(path)?, made: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps it, empty.
    ///
    /// # Errors
    /// The system's.
    pub fn keep(mut self) -> io::Result<File> {
        // Terminals and pipes have nothing to cut.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.made = None;
        self.file.try_clone()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn nothing_happens_unless_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        std::fs::write(&old, "contents").unwrap();
        for path in [&new, &old] {
            drop(NewFile::open(path).unwrap());
        }
        assert!(!new.exists());
        assert_eq!(std::fs::read(&old).unwrap(), b"contents");
        for path in [&new, &old] {
            NewFile::open(path).unwrap().keep().unwrap().write_all(b"x").unwrap();
            assert_eq!(std::fs::read(path).unwrap(), b"x");
        }
        assert!(NewFile::open(&folder.path().join("none/such")).is_err());
        assert!(NewFile::open(folder.path()).is_err());
    }
}
