//! A file that a command writes, if the command gets so far.
//!
//! It is opened early, so that a path that can't be written is an error before anything is done, and only then. Unless it
//! is kept, nothing has happened: a file that was there is as it was, one that was not is gone.
//!
//! A named pipe need not have a reader yet: it is opened for reading, too, so what is written waits in it, and writing fails
//! no more when a reader goes. Whoever writes must do so without waiting.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

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
        options.write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        match options.clone().create_new(true).open(path) {
            Ok(file) => Ok(Self { file, made: Some(path.to_owned()) }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(Self { file: open_what_is_there(path, &options)?, made: None })
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

fn open_what_is_there(path: &Path, options: &OpenOptions) -> io::Result<File> {
    if !path.metadata().is_ok_and(|it| it.file_type().is_fifo()) {
        // A link to nowhere is there, too.
        return options.clone().create(true).truncate(false).open(path);
    }
    match options.clone().read(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        result => return result,
    }
    options.open(path).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NXIO) => io::Error::other(
            "this pipe has no reader, and may not be opened for reading here: start its reader first, or give umbra's user \
             the right to read it",
        ),
        _ => error,
    })
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
    use rustix::fs::Mode;
    use std::io::{Read, Write};

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

    #[test]
    fn a_pipe_waits_for_its_reader_and_its_opener_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        let mut file = NewFile::open(&pipe).unwrap().keep().unwrap();
        file.write_all(b"before, ").unwrap();
        // A reader that goes is no failure.
        drop(File::open(&pipe).unwrap());
        let mut reader = File::open(&pipe).unwrap();
        file.write_all(b"after").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before, after");
        assert!(pipe.exists());
    }
}
