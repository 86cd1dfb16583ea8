//! What tests want to know of memory, and nobody may ask of a real guest_memfd.

use std::io;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{Backing, Error, GuestMemfd, Result};

/// The bytes of a backing that have memory, as runs of whole pages: those that were touched and not discarded since. Of
/// any shared memory with a file, and of private memory of the model's.
///
/// # Errors
/// Private memory of KVM's; anonymous memory.
pub fn allocated(backing: &Backing) -> Result<Vec<Range<u64>>> {
    runs(backing).map_err(|errno| Error::Failed {
        operation: "find",
        subject: "what a backing holds".into(),
        source: errno.into(),
    })
}

fn runs(backing: &Backing) -> std::result::Result<Vec<Range<u64>>, Errno> {
    let file = backing.file().ok_or(Errno::BADF)?;
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
