//! The socket: nobody's but the owner's from its first moment on, and gone at the end.
//!
//! Linux gives a bound socket the mode of the unbound one, so it is set before there is a path. A socket that nobody listens
//! at any more is replaced; one that somebody listens at, and any other file, is an error and stays. The folder is locked
//! meanwhile, so that two that start at once don't take each other's; a lock of somebody else's is waited for, but not long.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Read and write for the owner.
const MODE: u32 = 0o600;
/// How long somebody else's lock is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// How long between looks at it.
const LOCK_NAP: Duration = Duration::from_millis(20);
/// How many connections may wait to be accepted.
const BACKLOG: i32 = 64;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{} is in use by another process: choose another path, or end that process", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("{} is there and is no socket: choose another path", .0.display())]
    NoSocket(PathBuf),
    /// Somebody holds a lock.
    #[error("another process keeps the folder {} locked: choose another folder, or end that process", .0.display())]
    Locked(PathBuf),
    /// The system's.
    #[error("cannot make the socket {}", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start the thread that serves the API")]
    Thread(#[source] io::Error),
}

/// A socket that is listened at, removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    path: PathBuf,
    /// Device and number of the file that was made.
    made: (u64, u64),
}

impl Socket {
    /// Binds this path.
    ///
    /// # Errors
    /// Something is there already, or the system's.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::System { path: path.to_owned(), source };
        let os = |errno: rustix::io::Errno| failed(errno.into());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let lock = File::open(folder).map_err(failed)?;
        lock_folder(&lock, folder)?;
        remove_stale(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let descriptor = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(os)?;
        fchmod(&descriptor, Mode::from_raw_mode(MODE)).map_err(os)?;
        bind(&descriptor, &SocketAddrUnix::new(path).map_err(os)?).map_err(os)?;
        let file = std::fs::symlink_metadata(path).map_err(failed)?;
        let socket = Self { descriptor, path: path.to_owned(), made: (file.dev(), file.ino()) };
        if file.mode() & 0o777 != MODE {
            let open = "its file system does not keep it to its owner: choose a path elsewhere";
            return Err(failed(io::Error::other(open)));
        }
        listen(&socket.descriptor, BACKLOG).map_err(os)?;
        Ok(socket)
    }

    /// The socket for the runtime that this is called in.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.descriptor.try_clone()?.into())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody else's may be there by now.
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.made);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Locks the folder of the socket.
fn lock_folder(file: &File, folder: &Path) -> Result<(), BindError> {
    let limit = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < limit => std::thread::sleep(LOCK_NAP),
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(BindError::Locked(folder.to_owned())),
            Err(errno) => return Err(BindError::System { path: folder.to_owned(), source: errno.into() }),
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::System { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NoSocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_alone_and_gone_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(Socket::bind(&path), Err(BindError::InUse(_))));
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_stale_is_replaced_and_what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::NoSocket(_))));
        drop(socket);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody else's");
        let long = folder.path().join("x".repeat(200));
        assert!(matches!(Socket::bind(&long), Err(BindError::System { .. })));
        assert!(Socket::bind(&folder.path().join("none/api")).is_err());
    }

    #[test]
    fn a_lock_of_somebody_elses_is_an_error_that_names_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let lock = File::open(folder.path()).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let error = Socket::bind(&folder.path().join("api")).unwrap_err();
        assert!(matches!(&error, BindError::Locked(path) if path == folder.path()), "{error}");
        drop(lock);
        Socket::bind(&folder.path().join("api")).unwrap();
    }
}
