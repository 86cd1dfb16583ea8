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

/// A server that runs.
pub struct Server {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves this controller at this path, from now on.
    ///
    /// # Errors
    /// A path that can't be bound, or no thread.
    pub fn start(path: &Path, controller: Arc<Controller>) -> Result<Self, BindError> {
        let socket = Socket::bind(path)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(WAITING)
            .thread_keep_alive(THREAD_IDLE)
            .thread_name("api-wait")
            .build()
            .map_err(BindError::Thread)?;
        let (stop, stopped) = watch::channel(false);
        // Here, so that the memory which it took to make is free when this returns.
        let service = crate::document::service(controller);
        let body = move || {
            runtime.block_on(serve(socket, service, stopped));
            runtime.shutdown_timeout(GRACE);
        };
        let thread = std::thread::Builder::new().name("api".into()).spawn(body).map_err(BindError::Thread)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends: takes no more requests, lets those under way finish, and removes the socket.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let _ = self.stop.send(true);
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

async fn serve(socket: Socket, service: Router, mut stopped: watch::Receiver<bool>) {
    let listener = match socket.listener() {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("cannot serve the API: {error}"),
    };
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(connection::STRANGERS));
    loop {
        let accepted = tokio::select! {
            () = stop(&mut stopped) => break,
            accepted = async {
                let permit = room.clone().acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(permit), Ok((stream, _))) => {
                tokio::spawn(connection::serve(stream, service.clone(), stopped.clone(), permit, strangers.clone()));
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
async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
