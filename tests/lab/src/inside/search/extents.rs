//! Which parts of a file hold data.
//!
//! Guest memory is a sparse file, and reading a hole of one through a mapping fills it with pages. So a search asks the
//! file system first and reads data only; what is left out reads as zeros.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The parts of a file that hold data, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents(Vec<Range<u64>>);

impl Extents {
    /// Asks the file system. Moves the file's offset, so `file` must be an open file description of our own.
    ///
    /// `None` if the file system can't tell: then every byte may be data.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let mut extents = Vec::new();
        let mut position = 0;
        loop {
            let start = match seek(file, SeekFrom::Data(position)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return Ok(Some(Self(extents))),
                Err(Errno::INVAL | Errno::SPIPE | Errno::OPNOTSUPP) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let end = match seek(file, SeekFrom::Hole(start)) {
                Ok(end) => end,
                // The file was cut or punched meanwhile.
                Err(Errno::NXIO) => return Ok(Some(Self(extents))),
                Err(error) => return Err(error.into()),
            };
            if end > start {
                extents.push(start..end);
            }
            position = end.max(position + 1);
        }
    }

    /// Whether any byte of `range` is data.
    pub fn touch(&self, range: &Range<u64>) -> bool {
        let next = self.0.partition_point(|extent| extent.end <= range.start);
        self.0.get(next).is_some_and(|extent| extent.start < range.end)
    }

    /// The extents themselves.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_of_a_memfd_are_left_out() {
        let file = File::from(rustix::fs::memfd_create("sparse", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(1 << 30).unwrap();
        assert_eq!(Extents::of(&file).unwrap(), Some(Extents(Vec::new())));
        file.write_all_at(b"x", 3 * 4096 + 5).unwrap();
        file.write_all_at(b"x", 4 * 4096).unwrap();
        file.write_all_at(b"x", (1 << 30) - 1).unwrap();
        let extents = Extents::of(&file).unwrap().unwrap();
        assert_eq!(extents.0, [3 * 4096..5 * 4096, (1 << 30) - 4096..1 << 30]);
        assert!(!extents.touch(&(0..3 * 4096)));
        assert!(extents.touch(&(0..3 * 4096 + 1)));
        assert!(extents.touch(&(5 * 4096 - 1..1 << 20)));
        assert!(!extents.touch(&(5 * 4096..1 << 20)));
        assert!(!extents.touch(&(1 << 30..1 << 31)));
    }
}
