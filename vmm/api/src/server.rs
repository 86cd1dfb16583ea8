//! The server: HTTP/1.1 over a unix socket.
//!
//! One thread. The socket is the owner's alone ([`socket`]), and whoever connects is checked besides: only the user that the
//! process runs as, and root, get another answer than 403. Headers and bodies must come in time, answers must be taken in time,
//! bodies have a limit, and so have the numbers of connections, of conversions under way and of listeners to events.
//!
//! Answers are written as `ch-remote` reads them: names of headers with capitals, and no reason behind the status.

mod connection;
pub mod socket;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use tokio::sync::{Semaphore, watch};

use crate::Controller;
use socket::{BindError, Socket};

/// The most bytes of a body.
pub const BODY_LIMIT: usize = 1 << 20;
/// How long a body may take.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long headers may take, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take nothing of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many connections there may be; more wait.
const CONNECTIONS: usize = 64;
/// How many requests may wait for the machine at a time; more wait for these.
const WAITING: usize = 16;
/// How long threads for those stay when there is nothing to do.
const THREAD_IDLE: Duration = Duration::from_secs(1);
/// How long requests that are under way have when the server ends.
const GRACE: Duration = Duration::from_secs(5);

/// How far a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Clients can connect, and wait.
    Held,
    Open,
    Ending,
}

/// A server that runs.
pub struct Server {
    phase: watch::Sender<Phase>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves this controller at this path, from now on.
    ///
    /// # Errors
    /// A path that can't be bound, or no thread.
    pub fn start(path: &Path, controller: Arc<Controller>) -> Result<Self, BindError> {
        let server = Self::hold(path, controller)?;
        server.open();
        Ok(server)
    }

    /// The same, but whoever connects is neither heard nor answered before [`Server::open`]. All that can fail has been done.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn hold(path: &Path, controller: Arc<Controller>) -> Result<Self, BindError> {
        let socket = Socket::bind(path)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(WAITING)
            .thread_keep_alive(THREAD_IDLE)
            .thread_name("api-wait")
            .build()
            .map_err(BindError::Thread)?;
        let (phase, phases) = watch::channel(Phase::Held);
        // Here, so that the memory which it took to make is free when this returns.
        let service = crate::document::service(controller);
        let body = move || {
            runtime.block_on(serve(socket, service, phases));
            runtime.shutdown_timeout(GRACE);
        };
        let thread = std::thread::Builder::new().name("api".into()).spawn(body).map_err(BindError::Thread)?;
        Ok(Self { phase, thread: Some(thread) })
    }

    /// Serves those who wait, and all who come.
    pub fn open(&self) {
        let _ = self.phase.send(Phase::Open);
    }

    /// Ends: takes no more requests, lets those under way finish, and removes the socket.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let _ = self.phase.send(Phase::Ending);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.finish();
    }
}

async fn serve(socket: Socket, service: Router, mut phases: watch::Receiver<Phase>) {
    let listener = match socket.listener() {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("cannot serve the API: {error}"),
    };
    let open = phases.wait_for(|phase| *phase != Phase::Held).await.is_ok_and(|phase| *phase == Phase::Open);
    if !open {
        return;
    }
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(connection::STRANGERS));
    loop {
        let accepted = tokio::select! {
            () = stop(&mut phases) => break,
            accepted = async {
                let permit = room.clone().acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(permit), Ok((stream, _))) => {
                tokio::spawn(connection::serve(stream, service.clone(), phases.clone(), permit, strangers.clone()));
            }
            (_, Err(error)) => {
                // Such as no more descriptors: others may end.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Err(_), _) => break,
        }
    }
    drop((listener, socket));
    // All of them have ended when all permits are back.
    let all = room.acquire_many(u32::try_from(CONNECTIONS).unwrap_or(u32::MAX));
    let _ = tokio::time::timeout(GRACE, all).await;
}

/// Returns when the server is to end.
async fn stop(phases: &mut watch::Receiver<Phase>) {
    let _ = phases.wait_for(|phase| *phase == Phase::Ending).await;
}

#[cfg(test)]
mod tests {
    use vmm::events::EventMonitor;

    use super::*;
    use crate::Settings;
    use crate::client::{Client, ClientError};
    use crate::model::ModelHost;

    /// Longer than an answer takes, so that one that comes is seen.
    const WHILE: Duration = Duration::from_millis(300);

    #[test]
    fn who_connects_to_a_server_that_is_held_waits_and_is_served_once_it_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        let events = Arc::new(EventMonitor::new());
        let (controller, _ended) = Controller::new(Arc::new(ModelHost::default()), events, Settings::default());
        let server = Server::hold(&path, controller.clone()).unwrap();
        assert!(Client::new(&path).patient(WHILE).call("vmm.ping", &[], None, "*/*").unwrap_err().is_timeout());
        let waiting = std::thread::spawn({
            let client = Client::new(&path);
            move || client.call("vm.info", &[], None, "*/*")
        });
        let config = crate::testing::create("/proc/self/exe");
        controller.create(serde_json::from_str(&config).unwrap()).unwrap();
        server.open();
        waiting.join().unwrap().unwrap();
        server.end();
        // One that was never opened ends as well, and nobody who waits for it waits on.
        let server = Server::hold(&path, controller).unwrap();
        let waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(server);
        assert!(!path.exists());
        assert_eq!(std::io::Read::read(&mut &waiting, &mut [0]).unwrap_or_default(), 0);
        assert!(matches!(Client::new(&path).call("vmm.ping", &[], None, "*/*"), Err(ClientError::Connect { .. })));
    }
}
