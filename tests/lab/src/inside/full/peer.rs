//! The host's end of the guest's connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(120);
const PIECE: usize = 256 * 1024;

/// A listener for one connection.
#[derive(Debug)]
pub struct Peer(TcpListener);

/// What an exchange came to.
#[derive(Debug)]
pub struct Exchange {
    /// The checksum of what was sent.
    pub sent: String,
    /// How long it took until all was sent.
    pub send_time: Duration,
    /// The checksum of what was received.
    pub received: String,
    /// How long it took to receive it.
    pub receive_time: Duration,
}

impl Peer {
    /// Listens at this address, on a port of the kernel's choice.
    pub fn listen(address: &str) -> Result<Self> {
        TcpListener::bind((address, 0)).map(Self).with_context(|| format!("cannot listen at {address}"))
    }

    /// The port.
    pub fn port(&self) -> Result<String> {
        Ok(self.0.local_addr().context("a listener has no port")?.port().to_string())
    }

    fn accept(self) -> Result<TcpStream> {
        self.0.set_nonblocking(true).context("cannot wait for the guest")?;
        let deadline = Instant::now() + SILENCE;
        let stream = loop {
            match self.0.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error).context("the guest does not connect"),
            }
        };
        stream.set_nonblocking(false).context("cannot read from the guest")?;
        stream.set_read_timeout(Some(SILENCE)).context("cannot read from the guest")?;
        stream.set_write_timeout(Some(SILENCE)).context("cannot write to the guest")?;
        Ok(stream)
    }

    /// In a thread: sends `bytes` random ones, then receives as many.
    pub fn exchange(self, bytes: u64) -> JoinHandle<Result<Exchange>> {
        std::thread::spawn(move || {
            let mut stream = self.accept()?;
            let mut random = std::fs::File::open("/dev/urandom").context("cannot read /dev/urandom")?;
            let (sent, send_time) = pump(&mut random, Some(&mut stream), bytes).context("cannot send to the guest")?;
            let (received, receive_time) = pump(&mut stream, None, bytes).context("cannot receive from the guest")?;
            Ok(Exchange { sent, send_time, received, receive_time })
        })
    }

    /// In a thread, what the guest's first byte asks for: `i` sends `bytes`; `o` receives as many, and answers with one.
    pub fn serve(self, bytes: u64) -> JoinHandle<Result<()>> {
        std::thread::spawn(move || {
            let mut stream = self.accept()?;
            let mut asked = [0];
            stream.read_exact(&mut asked).context("the guest does not ask")?;
            match &asked {
                b"i" => copy_exactly(&mut std::io::repeat(0), &mut stream, bytes).context("cannot send to the guest"),
                b"o" => {
                    copy_exactly(&mut stream, &mut std::io::sink(), bytes).context("cannot receive from the guest")?;
                    stream.write_all(&[1]).context("cannot send to the guest")
                }
                other => bail!("the guest asks for {other:?}"),
            }
        })
    }

    /// In a thread: receives until the connection is cut, and counts.
    pub fn sink(self) -> Arc<AtomicU64> {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            let Ok(mut stream) = self.accept() else { return };
            let mut piece = vec![0; PIECE];
            // Its end, or a silence: the count stands still, which whoever looks at it notices.
            while let Ok(length @ 1..) = stream.read(&mut piece) {
                counted.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        count
    }
}

fn copy_exactly(from: &mut impl Read, to: &mut impl Write, bytes: u64) -> Result<()> {
    let (mut left, mut piece) = (bytes, vec![0; PIECE]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let length = from.read(&mut piece[..most])?;
        ensure!(length > 0, "the stream ended {left} bytes early");
        to.write_all(&piece[..length])?;
        left -= length as u64;
    }
    Ok(())
}

/// Reads so many bytes, writes them on, and returns their checksum and the time.
pub fn pump(from: &mut impl Read, mut to: Option<&mut TcpStream>, bytes: u64) -> Result<(String, Duration)> {
    let start = Instant::now();
    let (mut left, mut hasher, mut piece) = (bytes, Sha256::new(), vec![0; PIECE]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let length = from.read(&mut piece[..most])?;
        ensure!(length > 0, "the stream ended {left} bytes early");
        if let Some(to) = &mut to {
            to.write_all(&piece[..length])?;
        }
        hasher.update(&piece[..length]);
        left -= length as u64;
    }
    let sum = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((sum, start.elapsed()))
}

/// Waits until the count is above `than`, and as long as `check` finds nothing wrong.
pub fn wait_above(count: &AtomicU64, than: u64, limit: Duration, check: impl Fn() -> Result<()>) -> Result<u64> {
    let deadline = Instant::now() + limit;
    loop {
        let now = count.load(Ordering::Relaxed);
        if now > than {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            bail!("the guest sent nothing for {} s", limit.as_secs());
        }
        check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_goes_both_ways_and_is_summed() {
        let peer = Peer::listen("127.0.0.1").unwrap();
        let port: u16 = peer.port().unwrap().parse().unwrap();
        let host = peer.exchange(300_000);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut received = vec![0; 300_000];
        stream.read_exact(&mut received).unwrap();
        stream.write_all(&received).unwrap();
        let exchange = host.join().unwrap().unwrap();
        assert_eq!(exchange.sent, exchange.received);
        assert_eq!(exchange.sent, crate::cache::sha256(&received));
    }

    #[test]
    fn a_sink_counts_what_comes() {
        let peer = Peer::listen("127.0.0.1").unwrap();
        let port: u16 = peer.port().unwrap().parse().unwrap();
        let count = peer.sink();
        assert!(wait_above(&count, 0, Duration::from_secs(60), || bail!("the guest is gone")).is_err());
        assert!(wait_above(&count, 0, Duration::from_millis(50), || Ok(())).is_err());
        TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(&[1; 1000]).unwrap();
        assert!(wait_above(&count, 999, Duration::from_secs(60), || Ok(())).is_ok());
    }
}
