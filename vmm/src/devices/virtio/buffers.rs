//! Buffers in guest memory that stay shared while they are held, and system calls that move data straight into and out of
//! them.
//!
//! Guarantees: each call touches bytes of the buffers only, and all of them are guarded for as long as the call takes. What a
//! guest does to its own buffers meanwhile changes the data, and nothing else: no reference to the bytes is ever made.
#![expect(unsafe_code, reason = "system calls on several buffers take their addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryResult, Permissions, VolatileSlice};

use crate::memory::guarded::{DeviceView, SliceGuard};

/// The most buffers that one call takes (Linux `include/uapi/linux/uio.h`, `UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// Guarded buffers, one after the other. What is read or written at their front is taken from it.
#[derive(Debug, Default)]
pub struct Buffers<'v> {
    slices: Vec<VolatileSlice<'v, SliceGuard<'v>>>,
    /// Slices that were taken wholly.
    done: usize,
    size: usize,
}

impl<'v> Buffers<'v> {
    /// Guards all of these bytes.
    ///
    /// # Errors
    /// The refusal of the first that is not shared memory.
    pub fn guard(view: &'v DeviceView, ranges: impl Iterator<Item = (GuestAddress, usize)>) -> GuestMemoryResult<Self> {
        let mut slices = Vec::new();
        for (gpa, size) in ranges {
            for slice in view.get_slices(gpa, size, Permissions::ReadWrite)? {
                slices.push(slice?);
            }
        }
        let size = slices.iter().map(VolatileSlice::len).sum();
        Ok(Self { slices, done: 0, size })
    }

    /// Bytes that are left.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many pieces they are in.
    pub fn pieces(&self) -> usize {
        self.slices.len() - self.done
    }

    /// Leaves out the first bytes.
    pub fn skip(&mut self, mut count: usize) {
        while count > 0
            && let Some(slice) = self.slices.get_mut(self.done)
        {
            let part = count.min(slice.len());
            if part == slice.len() {
                self.done += 1;
            } else if let Ok(rest) = slice.offset(part) {
                *slice = rest;
            }
            (count, self.size) = (count - part, self.size - part);
        }
    }

    /// Copies the first bytes out, as many as fit, and says how many those are.
    pub fn copy_out(&mut self, bytes: &mut [u8]) -> usize {
        let mut copied = 0;
        for slice in &self.slices[self.done..] {
            copied += slice.copy_to(&mut bytes[copied..]);
        }
        self.skip(copied);
        copied
    }

    /// Copies bytes to the front, as many as fit, and says how many those are.
    pub fn copy_in(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.size);
        let mut copied = 0;
        for slice in &self.slices[self.done..] {
            let part = slice.len().min(count - copied);
            slice.copy_from(&bytes[copied..copied + part]);
            copied += part;
        }
        self.skip(copied);
        copied
    }

    /// Fills all of them from this offset of a file.
    ///
    /// # Errors
    /// The system's, or a file that ends before.
    pub fn read_all_at(mut self, file: impl AsFd, mut offset: u64) -> io::Result<()> {
        let file = file.as_fd().as_raw_fd();
        while self.size > 0 {
            let at = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: the vectors are of guarded memory that is mapped and may be written at any time.
            let read = self.call(|vectors, count| unsafe { libc::preadv64(file, vectors, count, at) })?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += read as u64;
        }
        Ok(())
    }

    /// Writes all of them to this offset of a file.
    ///
    /// # Errors
    /// The system's.
    pub fn write_all_at(mut self, file: impl AsFd, mut offset: u64) -> io::Result<()> {
        let file = file.as_fd().as_raw_fd();
        while self.size > 0 {
            let at = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: the vectors are of guarded memory that is mapped.
            let written = self.call(|vectors, count| unsafe { libc::pwritev64(file, vectors, count, at) })?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
        }
        Ok(())
    }

    /// Writes them to a stream, or as one packet, with one call. Returns how many bytes it took.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, stream: impl AsFd) -> io::Result<usize> {
        let stream = stream.as_fd().as_raw_fd();
        // SAFETY: the vectors are of guarded memory that is mapped.
        self.call(|vectors, count| unsafe { libc::writev(stream, vectors, count) })
    }

    /// Reads from a stream with one call, as much as fits. Returns how many bytes that were.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&mut self, stream: impl AsFd) -> io::Result<usize> {
        let stream = stream.as_fd().as_raw_fd();
        // SAFETY: the vectors are of guarded memory that is mapped and may be written at any time.
        self.call(|vectors, count| unsafe { libc::readv(stream, vectors, count) })
    }

    /// Makes a call again for as long as signals interrupt it, and takes from the front what it did.
    fn call(&mut self, call: impl Fn(*const libc::iovec, libc::c_int) -> libc::ssize_t) -> io::Result<usize> {
        let vectors: Vec<_> = self.vectors().take(MAX_VECTORS).collect();
        let count = retry(|| call(vectors.as_ptr(), vectors.len() as libc::c_int))?;
        self.skip(count);
        Ok(count)
    }

    fn vectors(&self) -> impl Iterator<Item = libc::iovec> {
        let rest = &self.slices[self.done..];
        rest.iter().map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
    }
}

/// Reads one packet into several buffers and then into `spill`. Returns its size, and how many bytes of that the buffers had
/// room for. Nothing is taken from the buffers.
///
/// # Errors
/// The system's.
pub fn read_packet(stream: impl AsFd, buffers: &[Buffers<'_>], spill: &mut [u8]) -> io::Result<(usize, usize)> {
    let mut vectors: Vec<_> = buffers.iter().flat_map(Buffers::vectors).take(MAX_VECTORS - 1).collect();
    let room: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    vectors.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
    let stream = stream.as_fd().as_raw_fd();
    // SAFETY: all vectors but the last are of guarded memory that is mapped and may be written at any time; the last is of
    // a slice that is borrowed for as long as the call takes.
    let size = retry(|| unsafe { libc::readv(stream, vectors.as_ptr(), vectors.len() as libc::c_int) })?;
    Ok((size, size.min(room)))
}

fn retry(call: impl Fn() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
