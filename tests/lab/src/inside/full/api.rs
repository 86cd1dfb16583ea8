//! Asks umbra's REST API: HTTP/1.1 over its unix socket, one request for each connection.
//!
//! What a user does with `umbra ctl` is done with it here too; this client is for answers that are looked at byte by byte.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The API behind a socket.
#[derive(Debug)]
pub struct Api(PathBuf);

impl Api {
    /// Behind this socket.
    pub fn new(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// GET, for JSON.
    pub fn get<T: DeserializeOwned>(&self, endpoint: &str) -> Result<T> {
        let body = self.request("GET", endpoint, "application/json", None)?;
        serde_json::from_slice(&body).with_context(|| format!("the answer to {endpoint} is not as expected"))
    }

    /// GET, for text of this type.
    pub fn get_text(&self, endpoint: &str, kind: &str) -> Result<String> {
        let body = self.request("GET", endpoint, kind, None)?;
        String::from_utf8(body).with_context(|| format!("the answer to {endpoint} is not text"))
    }

    /// PUT, with a JSON body or none; returns the body of the answer.
    pub fn put(&self, endpoint: &str, body: Option<&impl Serialize>) -> Result<Vec<u8>> {
        let body = body.map(serde_json::to_vec).transpose().context("cannot write a request")?;
        self.request("PUT", endpoint, "application/json", body.as_deref())
    }

    fn request(&self, method: &str, endpoint: &str, accept: &str, body: Option<&[u8]>) -> Result<Vec<u8>> {
        let context = || format!("{method} {endpoint} at {}", self.0.display());
        let exchange = || -> Result<Vec<u8>> {
            let mut stream = UnixStream::connect(&self.0)?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut request = format!(
                "{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n"
            );
            if let Some(body) = body {
                request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
            } else if method == "PUT" {
                request.push_str("Content-Length: 0\r\n");
            }
            request.push_str("\r\n");
            stream.write_all(request.as_bytes())?;
            stream.write_all(body.unwrap_or_default())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            parse(&answer)
        };
        exchange().with_context(context)
    }
}

/// The body of an answer that says success.
fn parse(answer: &[u8]) -> Result<Vec<u8>> {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").context("the answer has no end of its header")?;
    let head = std::str::from_utf8(&answer[..end]).context("the answer's header is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("the answer has no status")?;
    let chunked = lines.any(|line| line.to_ascii_lowercase().replace(' ', "") == "transfer-encoding:chunked");
    let body = &answer[end + 4..];
    let body = if chunked { dechunk(body)? } else { body.to_vec() };
    if !status.starts_with('2') {
        bail!("status {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|part| part == b"\r\n").context("a chunk has no size")?;
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.context("a chunk's size is no number")?;
        if size == 0 {
            return Ok(body);
        }
        let start = end + 2;
        ensure!(rest.len() - start >= size + 2, "a chunk is cut short");
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[start + size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap(), b"{}");
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap(), b"");
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), b"abc0123456789");
    }

    #[test]
    fn refusals_are_errors_with_their_reasons() {
        let error = parse(b"HTTP/1.1 404 Not Found\r\n\r\n[\"no such VM\"]").unwrap_err().to_string();
        assert!(error.contains("404") && error.contains("no such VM"), "{error}");
    }

    #[test]
    fn damaged_answers_are_errors() {
        for bad in [
            &b""[..],
            b"HTTP/1.1 200 OK",
            b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
