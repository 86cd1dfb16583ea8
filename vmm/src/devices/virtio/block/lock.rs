//! The lock of an image: among all who ask for it, one writer or any number of readers.
//!
//! It is a lock of the open file description on the whole file (`F_OFD_SETLK`, fcntl(2)), the kind that QEMU and Cloud
//! Hypervisor take, too, so that they and Umbra keep each other away. It ends with the last descriptor of the file, however
//! the process ends. It binds only those who ask.
#![expect(unsafe_code, reason = "fcntl takes a pointer for this command")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Locks a file, for one writer or for readers. `false` if others' locks are in the way.
///
/// # Errors
/// A file system that knows no locks.
pub fn lock(file: &File, write: bool) -> io::Result<bool> {
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        // Up to the end, wherever it is.
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the command reads a lock structure, which lives as long as the call takes.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(true),
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        error => Err(error),
    }
}
