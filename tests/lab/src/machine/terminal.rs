//! The user's terminal while it belongs to a job: raw, so that every key goes inside, and as before afterwards.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::interrupt::{Cleanup, on_interrupt};

/// Ctrl-], and how often in a row it ends the job.
const ESCAPE: u8 = 0x1d;
const ESCAPES: usize = 3;

/// Keeps standard input in raw mode.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
    _cleanup: Cleanup,
}

impl Raw {
    /// Turns raw mode on.
    pub fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        let restore = before.clone();
        let cleanup = on_interrupt(move || {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &restore);
        });
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("cannot change the terminal's settings")?;
        Ok(Self { before, _cleanup: cleanup })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Why the user's input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// The job is over.
    JobOver,
    /// The user wants it to end.
    Escape,
}

/// Passes keys to the job until `over` is closed at its other end, or the user ends it.
pub fn pass_keys(mut to: UnixStream, over: &OwnedFd) -> io::Result<InputEnd> {
    let mut escapes = EscapeCounter::default();
    let mut buffer = [0; 4096];
    let input = io::stdin();
    loop {
        let mut events = [PollFd::new(&input, PollFlags::IN), PollFd::new(over, PollFlags::IN)];
        retry_on_intr(|| poll(&mut events, None))?;
        if !events[1].revents().is_empty() {
            return Ok(InputEnd::JobOver);
        }
        // Not through Stdin's own buffer, which poll knows nothing of.
        let length = match retry_on_intr(|| rustix::io::read(&input, &mut buffer))? {
            0 => return Ok(InputEnd::Escape), // the terminal is gone
            length => length,
        };
        if escapes.count(&buffer[..length]) {
            return Ok(InputEnd::Escape);
        }
        if to.write_all(&buffer[..length]).is_err() {
            return Ok(InputEnd::JobOver);
        }
    }
}

#[derive(Debug, Default)]
struct EscapeCounter(usize);

impl EscapeCounter {
    /// Whether the escape is complete after these keys.
    fn count(&mut self, keys: &[u8]) -> bool {
        for &key in keys {
            self.0 = if key == ESCAPE { self.0 + 1 } else { 0 };
            if self.0 == ESCAPES {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_escapes_in_a_row_end_the_job() {
        let mut counter = EscapeCounter::default();
        assert!(!counter.count(b"a\x1d\x1d"));
        assert!(!counter.count(b"b\x1d"));
        assert!(!counter.count(b"\x1d"));
        assert!(counter.count(b"\x1d"));
    }
}
