//! One connection: who it is, and its requests.
//!
//! Users who may not use the API are told so once, with 403, and cost little: none of the places of those who may, nothing of
//! their request but its headers is looked at, all of it has [`STRANGER_TIMEOUT`], and no more than [`STRANGERS`] are answered at
//! a time. Others of theirs are closed without a word, to them or in the log.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use super::{BODY_LIMIT, HEADER_TIMEOUT, Phase, WRITE_TIMEOUT};
use crate::ApiError;

/// How many users who may not use the API are told so at a time.
pub(super) const STRANGERS: usize = 4;
/// How long each of these has, from the connection to the end of its answer.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves a connection until it closes or the server ends.
pub(super) async fn serve(
    stream: UnixStream,
    service: Router,
    mut phases: watch::Receiver<Phase>,
    permit: OwnedSemaphorePermit,
    strangers: Arc<Semaphore>,
) {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let owner = rustix::process::geteuid().as_raw();
    if !peer.as_ref().is_ok_and(|uid| may_ask(*uid, owner)) {
        drop(permit);
        let who = peer.map_or("nobody in particular".into(), |uid| format!("user {uid}"));
        let Ok(_turn) = strangers.try_acquire_owned() else { return };
        tracing::warn!("refused a connection of {who}: only user {owner} and root may use the API");
        let refusal = ApiError::new(
            StatusCode::FORBIDDEN,
            format!(
                "permission denied: this API is that of user {owner}, and you are {who}: ask as user {owner} or as root"
            ),
        );
        tokio::select! {
            () = tell(stream, refusal, STRANGER_TIMEOUT) => {}
            () = super::stop(&mut phases) => {}
        }
        return;
    }
    let _permit = permit;
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let service = service.clone();
        async move { service.oneshot(request.map(axum::body::Body::new)).await.map(without_reason) }
    });
    let connection = http(HEADER_TIMEOUT).serve_connection(TokioIo::new(impatient(stream, WRITE_TIMEOUT)), answer);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = super::stop(&mut phases) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("a connection to the API ended: {error}");
    }
}

/// HTTP as clients are served, which have this long for headers.
fn http(limit: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limit).title_case_headers(true);
    http
}

/// Answers one request with this, whatever it is, and reads the rest of it, so that the answer is not lost to a client that still
/// writes. Within this time.
async fn tell(stream: UnixStream, refusal: ApiError, limit: Duration) {
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let refusal = refusal.clone();
        async move {
            // Whatever it is, and whether it comes or not.
            let _ = Limited::new(request.into_body(), BODY_LIMIT).collect().await;
            Ok::<_, Infallible>(without_reason(refusal.into_response()))
        }
    });
    let mut http = http(limit);
    let connection = http.keep_alive(false).serve_connection(TokioIo::new(stream), answer);
    let _ = tokio::time::timeout(limit, connection).await;
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_client_that_never_reads_is_not_waited_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let result = impatient(ours, Duration::from_millis(20)).write_all(&vec![0; 64 << 20]).await;
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn strangers_are_told_why_they_get_nothing() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let refusal = ApiError::new(StatusCode::FORBIDDEN, "permission denied: ask as user 7");
        let telling = tokio::spawn(tell(ours, refusal, Duration::from_secs(60)));
        // More than the socket takes at once, so that an answer before the end of it would be lost.
        let body = vec![b'x'; 512 << 10];
        let head = format!("PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        theirs.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 \r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n[\"permission denied: ask as user 7\"]"), "{answer}");
        telling.await.unwrap();
    }

    #[tokio::test]
    async fn strangers_who_say_nothing_are_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let refusal = ApiError::new(StatusCode::FORBIDDEN, "permission denied");
        theirs.write_all(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").await.unwrap();
        tell(ours, refusal, Duration::from_millis(20)).await;
        let mut answer = Vec::new();
        // The connection is over, cleanly or not.
        let _ = theirs.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }

    #[test]
    fn only_the_owner_and_root_may_ask() {
        assert!(may_ask(1000, 1000) && may_ask(0, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
    }
}
