//! A client: calls an operation by the name that the document gives it.
//!
//! Method and path are looked up in the document, so a new endpoint needs nothing here.

mod answer;

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;

use crate::ROOT;
use answer::answer;

/// The most bytes of an answer.
const ANSWER_LIMIT: u64 = 64 << 20;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::to_value(crate::document::document()).unwrap_or_default());

/// Why there is no answer that is of use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach umbra at {}: is it running with --api-socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket is somebody else's.
    #[error("permission denied: {}", whose(path))]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the connection to umbra broke")]
    Broken(#[source] io::Error),
    /// There is more of it than can be of use.
    #[error("umbra's answer has more than {ANSWER_LIMIT} bytes")]
    TooLong,
    /// What came is no HTTP.
    #[error("what answers there is not umbra: {0}")]
    NotHttp(&'static str),
    /// There is no such operation.
    #[error("there is no operation {0:?}")]
    Unknown(String),
    /// It was refused.
    #[error("{}", chain.join(": "))]
    Refused {
        /// HTTP's.
        status: u16,
        /// The error and its causes.
        chain: Vec<String>,
    },
}

/// Whom a socket belongs to that this user may not use, and what to do.
fn whose(path: &Path) -> String {
    let socket = path.display();
    match std::fs::metadata(path) {
        Ok(file) => {
            let user = file.uid();
            format!("the socket {socket} belongs to user {user}: ask as that user (sudo -u '#{user}' ...) or as root")
        }
        Err(_) => {
            format!("a folder on the way to the socket {socket} is closed to this user: ask as its owner or as root")
        }
    }
}

impl ClientError {
    /// Whether there was no answer in the time that [`Client::patient`] gives, or a signal came first.
    pub fn is_timeout(&self) -> bool {
        use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
        let late = |error: &io::Error| matches!(error.kind(), Interrupted | TimedOut | WouldBlock);
        matches!(self, Self::Broken(source) | Self::Connect { source, .. } if late(source))
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its body; empty for none.
    pub body: Vec<u8>,
}

/// Calls operations at one socket, each over a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Option<Duration>,
    late: Option<Late>,
}

/// Whom to tell that an answer is late, and when.
#[derive(Debug, Clone, Copy)]
struct Late {
    after: Duration,
    tell: fn(),
}

impl Client {
    /// A client of this socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), patience: None, late: None }
    }

    /// The same, but it waits no longer than this for umbra's next move.
    #[must_use]
    pub fn patient(&self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self.clone() }
    }

    /// The same, but it calls this from another thread where the answer to an operation has not begun after so long, and
    /// waits on.
    #[must_use]
    pub fn telling(&self, after: Duration, tell: fn()) -> Self {
        Self { late: Some(Late { after, tell }), ..self.clone() }
    }

    /// The names of all operations.
    pub fn operations() -> Vec<&'static str> {
        let items = DOCUMENT["paths"].as_object().into_iter().flatten();
        let operations = items.flat_map(|(_, item)| item.as_object().into_iter().flatten());
        operations.filter_map(|(_, operation)| operation["operationId"].as_str()).collect()
    }

    /// Calls an operation, with a query if there is one, a body if there is one, and the kind of answer that is wanted.
    ///
    /// # Errors
    /// Nobody answers, or the answer is an error.
    pub fn call(
        &self,
        operation: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        accept: &str,
    ) -> Result<Answer, ClientError> {
        read_all(self.read(operation, query, body, accept)?).map(|body| Answer { body })
    }

    /// The same, but the body of the answer is for the caller to read, as it comes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn read(
        &self,
        operation: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        accept: &str,
    ) -> Result<Box<dyn Read>, ClientError> {
        let (status, reader) = self.send(operation, query, body, accept)?;
        if (200..300).contains(&status) {
            return Ok(reader);
        }
        let body = read_all(reader)?;
        let chain = serde_json::from_slice(&body);
        let chain =
            chain.unwrap_or_else(|_| vec![format!("umbra answers {status}"), String::from_utf8_lossy(&body).into()]);
        Err(ClientError::Refused { status, chain })
    }

    /// Calls an operation whose answer has no end, and reads its lines.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn lines(&self, operation: &str) -> Result<impl Iterator<Item = io::Result<String>>, ClientError> {
        Ok(BufReader::new(self.read(operation, &[], None, "text/event-stream")?).lines())
    }

    fn send(
        &self,
        operation: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        accept: &str,
    ) -> Result<(u16, Box<dyn Read>), ClientError> {
        let (method, path) = find(operation).ok_or_else(|| ClientError::Unknown(operation.into()))?;
        let _watch = self.late.map(Late::watch);
        let unreachable = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: self.socket.clone() },
            _ => ClientError::Connect { path: self.socket.clone(), source },
        };
        let mut stream = self.connect().map_err(unreachable)?;
        let mut target = format!("{ROOT}{path}");
        for (i, (name, value)) in query.iter().enumerate() {
            let _ = write!(target, "{}{name}={value}", if i == 0 { '?' } else { '&' });
        }
        let mut request =
            format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n");
        if let Some(body) = body {
            let body = body.to_string();
            let _ = write!(request, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        } else {
            request.push_str("\r\n");
        }
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match stream.write_all(request.as_bytes()) {
            Ok(()) => answer(stream),
            // Umbra wants no more of it, and may have said why.
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                answer(stream).map_err(|_| ClientError::Broken(error))
            }
            Err(error) => Err(ClientError::Broken(error)),
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // For the connection, too: a server that takes no more of them makes clients wait.
        for direction in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, direction, self.patience)?;
        }
        connect(&socket, &SocketAddrUnix::new(&self.socket)?)?;
        Ok(socket.into())
    }
}

impl Late {
    /// Tells it, unless what this returns is dropped before.
    fn watch(self) -> mpsc::Sender<()> {
        let (answered, answer) = mpsc::channel();
        let body = move || {
            if answer.recv_timeout(self.after) == Err(RecvTimeoutError::Timeout) {
                (self.tell)();
            }
        };
        // Without a thread, nobody is told, and the answer is the same.
        let _ = std::thread::Builder::new().name("late".into()).spawn(body);
        answered
    }
}

/// All of a body.
fn read_all(reader: Box<dyn Read>) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    reader.take(ANSWER_LIMIT + 1).read_to_end(&mut body).map_err(ClientError::Broken)?;
    if body.len() as u64 > ANSWER_LIMIT { Err(ClientError::TooLong) } else { Ok(body) }
}

/// Method and path of an operation.
fn find(name: &str) -> Option<(String, &'static str)> {
    let mut items = DOCUMENT["paths"].as_object()?.iter();
    items.find_map(|(path, item)| {
        let mut operations = item.as_object()?.iter();
        let (method, _) = operations.find(|(_, operation)| operation["operationId"] == name)?;
        Some((method.to_uppercase(), path.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn answers_without_end_and_servers_without_answers_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path).patient(Duration::from_millis(20));
        let ping = || client.call("vmm.ping", &[], None, "*/*");
        // Nobody answers, and in the end there is no room for more connections either.
        rustix::net::listen(&listener, 1).unwrap();
        for _ in 0..5 {
            assert!(ping().unwrap_err().is_timeout());
        }
        drop(listener);
        assert!(!ping().unwrap_err().is_timeout());
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let endless = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [&b"100000\r\n"[..], &[b'x'; 1 << 20], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {}
        });
        let patient = Client::new(&path);
        assert!(matches!(patient.call("vmm.ping", &[], None, "*/*"), Err(ClientError::TooLong)));
        endless.join().unwrap();
    }
}
