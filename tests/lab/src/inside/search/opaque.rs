#![expect(unsafe_code, reason = "mapping a file is the question that is asked here")]
//! Tries to map a file that can't be read, as anybody who wanted to see a guest_memfd's contents would.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::scanner::ReadAt;

/// A file's contents in this process's own memory.
///
/// They are read by having the kernel copy them to another file: a page that can't be touched is an error then, where a
/// touch of ours would be a SIGBUS.
pub struct Mapped {
    address: *mut std::ffi::c_void,
    length: usize,
    copy: File,
}

/// Maps the whole of `file`.
pub fn map(file: &File) -> io::Result<Mapped> {
    let length = usize::try_from(file.metadata()?.len().max(1)).map_err(io::Error::other)?;
    let copy = File::from(memfd_create("copy", MemfdFlags::CLOEXEC)?);
    // SAFETY: the kernel chooses the address, so no memory in use is replaced; no reference to the mapping is made.
    let address = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
    Ok(Mapped { address, length, copy })
}

impl Mapped {
    /// Size in bytes.
    pub fn length(&self) -> u64 {
        self.length as u64
    }
}

impl ReadAt for Mapped {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        use std::os::fd::AsRawFd;

        let start = usize::try_from(position).unwrap_or(usize::MAX).min(self.length);
        let count = buffer.len().min(self.length - start);
        let from = self.address.cast_const().wrapping_byte_add(start);
        // SAFETY: the range lies in the mapping, which lives as long as `self`; only the kernel reads it, and it
        // answers with an error if a page is missing.
        let written = unsafe { libc::pwrite(self.copy.as_raw_fd(), from, count, 0) };
        match usize::try_from(written) {
            Ok(written) => ReadAt::read_at(&self.copy, &mut buffer[..written], 0),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` got, it is unmapped once, and no reference to it exists.
        let unmapped = unsafe { munmap(self.address, self.length) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::scanner::Scanner;
    use super::*;

    #[test]
    fn mapped_contents_are_searched_and_missing_pages_are_errors() {
        let file = File::from(memfd_create("mapped", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(3 * 4096).unwrap();
        file.write_all_at(b"across two pages", 4090).unwrap();
        let mapped = map(&file).unwrap();
        file.set_len(2 * 4096).unwrap();
        let mut scanner = Scanner::new(&[b"across two pages"]);
        let refused = scanner.search(&mapped, 0, mapped.length()).unwrap();
        assert_eq!(refused.bytes, 4096);
        assert_eq!(refused.error.raw_os_error(), Some(libc::EFAULT));
        assert_eq!((scanner.hits(), scanner.bytes()), (vec![1], 8192));
    }

    #[test]
    fn what_refuses_to_be_mapped_is_an_error() {
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert!(map(&File::from(pipe)).is_err());
    }
}
