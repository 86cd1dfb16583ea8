//! One connection: who it is, and its requests.

use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use super::{HEADER_TIMEOUT, WRITE_TIMEOUT};

/// Serves a connection until it closes or the server ends.
pub(super) async fn serve(
    stream: UnixStream,
    service: Router,
    mut stopped: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let owner = rustix::process::geteuid().as_raw();
    if !peer.as_ref().is_ok_and(|uid| may_ask(*uid, owner)) {
        tracing::warn!("refused a connection of {peer:?}: only user {owner} and root may use the API");
        return;
    }
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let service = service.clone();
        async move { service.oneshot(request.map(axum::body::Body::new)).await.map(without_reason) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).title_case_headers(true);
    let connection = http.serve_connection(TokioIo::new(impatient(stream, WRITE_TIMEOUT)), answer);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = super::stop(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("a connection to the API ended: {error}");
    }
}

/// Ends with an error when the client takes nothing for so long.
fn impatient(stream: UnixStream, limit: Duration) -> Pin<Box<TimeoutStream<UnixStream>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limit));
    Box::pin(stream)
}

/// Whether this user may use the API of a process of that one.
fn may_ask(peer: u32, owner: u32) -> bool {
    peer == owner || peer == 0
}

/// `ch-remote` takes all that follows the version for the status.
fn without_reason(mut response: Response) -> Response {
    response.extensions_mut().insert(ReasonPhrase::from_static(b""));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_client_that_never_reads_is_not_waited_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let result = impatient(ours, Duration::from_millis(20)).write_all(&vec![0; 64 << 20]).await;
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_the_owner_and_root_may_ask() {
        assert!(may_ask(1000, 1000) && may_ask(0, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
    }
}
