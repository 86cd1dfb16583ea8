//! What tests want to know of memory, and nobody may ask of a real guest_memfd.

use std::io;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{Backing, Error, GuestMemfd, PAGE_SIZE, Result, SharedMemory};

/// The bytes of a backing that have memory, as runs of whole pages: those that were touched and not discarded since. Of
/// any shared memory, and of private memory of the model's. Anonymous memory that became a huge page has all of it.
///
/// # Errors
/// Private memory of KVM's.
pub fn allocated(backing: &Backing) -> Result<Vec<Range<u64>>> {
    runs(backing).map_err(|errno| Error::Failed {
        operation: "find",
        subject: "what a backing holds".into(),
        source: errno.into(),
    })
}

fn runs(backing: &Backing) -> std::result::Result<Vec<Range<u64>>, Errno> {
    let file = match (backing, backing.file()) {
        (_, Some(file)) => file,
        (Backing::Shared(memory), None) => return resident(memory),
        (Backing::Private(_), None) => return Err(Errno::BADF),
    };
    let mut runs = Vec::new();
    let mut end = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(end)) {
            // Nothing from there on.
            Err(Errno::NXIO) => return Ok(runs),
            start => start?,
        };
        // There is a hole behind the end of every file.
        end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        runs.push(start..end);
    }
}

/// What an anonymous mapping has memory behind.
#[expect(unsafe_code, reason = "mincore takes an address; the mapping is the backing's own")]
fn resident(memory: &SharedMemory) -> std::result::Result<Vec<Range<u64>>, Errno> {
    let mapping = memory.mapping();
    let mut pages = vec![0u8; mapping.size().div_ceil(PAGE_SIZE as usize)];
    // SAFETY: the addresses are those of a live mapping, and the vector has a byte for each of its pages.
    let result = unsafe { libc::mincore(mapping.as_ptr().cast(), mapping.size(), pages.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error));
    }
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (page, _) in (0u64..).zip(&pages).filter(|(_, state)| *state & 1 != 0) {
        let start = page * PAGE_SIZE;
        match runs.last_mut() {
            Some(run) if run.end == start => run.end += PAGE_SIZE,
            _ => runs.push(start..start + PAGE_SIZE),
        }
    }
    Ok(runs)
}

/// Reads private memory of the model's. What holds no memory reads as zeros, and still holds none afterwards.
///
/// # Errors
/// Bytes outside of it; private memory of KVM's.
pub fn read_private(memory: &GuestMemfd, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let size = bytes.len();
    let failed = |source| Error::Failed {
        operation: "read",
        subject: format!("{size:#x} bytes at {offset:#x} of private guest memory"),
        source,
    };
    let mut done = 0;
    while done < size {
        match rustix::io::pread(memory, &mut bytes[done..], offset.saturating_add(done as u64)) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}
