//! An answer as it comes over the wire: its status, and its body in each of the forms that HTTP/1.1 has for one.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;

use super::ClientError;

/// The most bytes of a line of a header, or before a chunk.
const LINE_LIMIT: u64 = 16 << 10;

/// Status and body of an answer. One without a length ends with the connection. Where there is one, nothing is read behind
/// it: that would be an error where the server has closed the connection without having read all of the request.
pub(super) fn answer(stream: UnixStream) -> Result<(u16, Box<dyn Read>), ClientError> {
    let mut reader = BufReader::new(stream);
    let mut line = || -> Result<String, ClientError> {
        let mut line = String::new();
        (&mut reader).take(LINE_LIMIT).read_line(&mut line).map_err(ClientError::Broken)?;
        Ok(line)
    };
    let first = line()?;
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or(ClientError::NotHttp("no status"))?;
    let (mut chunked, mut length) = (false, None);
    loop {
        let header = line()?.to_ascii_lowercase();
        match header.trim_end().split_once(": ") {
            None if header.trim_end().is_empty() => break,
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(("content-length", number)) => {
                let bad = |_| ClientError::NotHttp("a length that is no number");
                length = Some(number.parse().map_err(bad)?);
            }
            _ => {}
        }
    }
    let body: Box<dyn Read> = match length {
        _ if chunked => Box::new(Chunks { reader, left: 0 }),
        Some(left) => Box::new(Counted { reader, left }),
        None => Box::new(reader),
    };
    Ok((status, body))
}

/// A body of a length that was said before.
struct Counted {
    reader: BufReader<UnixStream>,
    left: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        self.left -= count as u64;
        match count == 0 && self.left > 0 && !buffer.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended in the middle of an answer")),
            false => Ok(count),
        }
    }
}

/// A body in chunks (RFC 9112, 7.1).
struct Chunks {
    reader: BufReader<UnixStream>,
    left: u64,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            (&mut self.reader).take(LINE_LIMIT).read_line(&mut line)?;
            if line.trim_end().is_empty() {
                // The end of the chunk before.
                line.clear();
                (&mut self.reader).take(LINE_LIMIT).read_line(&mut line)?;
            }
            let size = line.split(';').next().unwrap_or_default().trim();
            self.left = u64::from_str_radix(size, 16).map_err(|_| io::Error::other("a chunk without a size"))?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// What is read of an answer by a client that was not done with its request.
    fn read(bytes: &[u8]) -> io::Result<String> {
        let (ours, mut theirs) = UnixStream::pair()?;
        (&ours).write_all(b"what nobody reads")?;
        theirs.write_all(bytes)?;
        drop(theirs);
        let (status, mut body) = answer(ours).map_err(io::Error::other)?;
        let mut text = format!("{status} ");
        body.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn a_body_is_all_that_was_announced_whatever_becomes_of_the_connection() {
        assert_eq!(read(b"HTTP/1.1 413 \r\nContent-Length: 5\r\n\r\nwords").unwrap(), "413 words");
        assert_eq!(
            read(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwords\r\n0\r\n\r\n").unwrap(),
            "200 words"
        );
        for short in
            [&b"HTTP/1.1 200 \r\nContent-Length: 6\r\n\r\nwords"[..], b"HTTP/1.1 200 \r\nContent-Length: x\r\n\r\n"]
        {
            assert!(read(short).is_err());
        }
    }
}
