//! The unix socket that programs of the host connect to.
//!
//! Guarantees: its file can be used by this user alone, from the first moment on. A file that somebody listens on, or that is
//! no socket, is left alone; one that a process left behind is replaced. Dropped, the file goes, if it is still the same.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Error, Result};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// How often it is told at the most that programs have to wait.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// The longest that is appended to the path: an underscore and a port.
const LONGEST_SUFFIX: &str = "_4294967295";

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    file: (u64, u64),
    /// When it was told that programs have to wait.
    told: Mutex<Option<Instant>>,
}

impl Listener {
    /// Listens on this path.
    ///
    /// # Errors
    /// A path that is in use or too long, or the system's.
    pub fn bind(path: &Path) -> Result<Self> {
        let bad = |problem: String| Error::Device { device: format!("socket {}", path.display()), problem };
        let failed = |operation| {
            move |source: io::Error| Error::File { operation, role: "socket", path: path.to_owned(), source }
        };
        let longest = beside(path, LONGEST_SUFFIX);
        if SocketAddrUnix::new(&longest).is_err() {
            return Err(
                bad("its path is too long for a socket, or none at all: choose one of at most 96 bytes".into()),
            );
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(bad("there is a file that is no socket: choose another path, or remove it".into()));
            }
            Ok(_) => match connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed("remove the abandoned"))?;
                }
                // One who listens may have no time for it, either.
                _ => return Err(bad("somebody listens on it: choose another path, or end that program".into())),
            },
        }
        let address = SocketAddrUnix::new(path).map_err(|errno| failed("create")(errno.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| failed("create")(errno.into()))?;
        // Before it has a name, so that it is nobody else's for a moment either.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|errno| failed("create")(errno.into()))?;
        rustix::net::bind(&socket, &address).map_err(|errno| failed("create")(errno.into()))?;
        let file = std::fs::symlink_metadata(path).map(|file| identity(&file)).map_err(failed("look at"))?;
        let listener = Self { socket: socket.into(), path: path.to_owned(), file, told: Mutex::default() };
        rustix::net::listen(&listener.socket, BACKLOG).map_err(|errno| failed("listen on")(errno.into()))?;
        Ok(listener)
    }

    /// The socket. Never blocks.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Tells why programs have to wait, at most once in [`TELL_INTERVAL`].
    pub fn tell(&self, error: &io::Error) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            *told = Some(Instant::now());
            tracing::warn!("programs that connect to {} have to wait: {error}", self.path.display());
        }
    }

    /// Connects to who listens for connections of the guest's to this port.
    ///
    /// # Errors
    /// Nobody does, or too many have asked already.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        connect(&beside(&self.path, &format!("_{port}")))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let same = std::fs::symlink_metadata(&self.path).is_ok_and(|file| identity(&file) == self.file);
        if same && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove socket {}: {error}", self.path.display());
        }
    }
}

/// Connects, and never waits: not for one who listens and takes no connections either.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
