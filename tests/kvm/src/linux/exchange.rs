//! What the host and the guest send each other over a connection, whatever carries it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use sha2::{Digest, Sha256};

/// How long a connection may be silent: the guest is emulated, and the machine may be busy.
const SILENCE: Duration = Duration::from_secs(240);

/// How many bytes go each way.
pub const BYTES: usize = 600 << 10;

/// The checksums of what was exchanged, as `sha256sum` prints them.
#[derive(Debug, PartialEq, Eq)]
pub struct Sums {
    /// Of what the host sent.
    pub sent: String,
    /// Of what it received.
    pub received: String,
}

/// Waits until a listener has a connection to accept.
///
/// # Errors
/// Nobody connects.
pub fn wait_for_connection(listener: impl AsFd) -> anyhow::Result<()> {
    let limit = Timespec { tv_sec: SILENCE.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&limit))?;
    ensure!(ready > 0, "the guest does not connect");
    Ok(())
}

/// Calls the guest until it answers.
///
/// # Errors
/// It does not.
pub fn connect<S>(what: &str, mut attempt: impl FnMut() -> std::io::Result<S>) -> anyhow::Result<S> {
    let limit = Instant::now() + SILENCE;
    loop {
        match attempt() {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > limit => return Err(error).with_context(|| format!("cannot reach {what}")),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Sends [`BYTES`] random bytes, and meanwhile receives what the guest sends, until it says that this is all. The connection
/// is closed when both are through.
///
/// # Errors
/// A connection that breaks or is silent, or carries another number of bytes.
pub fn exchange(connection: impl Into<OwnedFd>) -> anyhow::Result<Sums> {
    let connection = connection.into();
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&connection, direction, Some(SILENCE))?;
    }
    let mut input = File::from(connection);
    let mut output = input.try_clone()?;
    let mut data = vec![0; BYTES];
    File::open("/dev/urandom")?.read_exact(&mut data)?;
    let sent = sum(&data);
    let sender = std::thread::spawn(move || output.write_all(&data).context("cannot send to the guest"));
    let mut received = Vec::new();
    input.read_to_end(&mut received).context("cannot receive from the guest")?;
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    ensure!(received.len() == BYTES, "the guest sent {} bytes instead of {BYTES}", received.len());
    // Whatever the guest still waits for, it has all.
    match rustix::net::shutdown(&input, Shutdown::Both) {
        // The guest may have gone already.
        Err(rustix::io::Errno::NOTCONN) => {}
        result => result?,
    }
    Ok(Sums { sent, received: sum(&received) })
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn both_sides_send_at_once_and_agree() {
        let (one, other) = UnixStream::pair().unwrap();
        let guest = std::thread::spawn(move || {
            let mut input = other.try_clone().unwrap();
            let sender = std::thread::spawn(move || {
                (&other).write_all(&[7; BYTES]).unwrap();
                other.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            input.read_to_end(&mut received).unwrap();
            sender.join().unwrap();
            received
        });
        let sums = exchange(one).unwrap();
        assert_eq!(sums, Sums { sent: sum(&guest.join().unwrap()), received: sum(&[7; BYTES]) });
    }

    #[test]
    fn a_guest_that_sends_too_little_is_an_error() {
        let (one, other) = UnixStream::pair().unwrap();
        let guest = std::thread::spawn(move || {
            (&other).write_all(&[7; 10]).unwrap();
            other.shutdown(std::net::Shutdown::Write).unwrap();
            (&other).read_to_end(&mut Vec::new()).unwrap()
        });
        assert!(exchange(one).unwrap_err().to_string().contains("10 bytes"));
        // Dropped, the connection has ended.
        assert_eq!(guest.join().unwrap(), BYTES);
    }
}
