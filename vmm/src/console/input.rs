//! Input for the guest: standard input.
//!
//! On a terminal, it is raw while the machine runs: every key goes to the guest. Ctrl-A x ends the machine, whether the guest
//! reads or not, and Ctrl-A Ctrl-A sends one Ctrl-A. The terminal gets back its settings when the [`RawTerminal`] is dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, OptionalActions, Termios};

use super::LOOK;
use crate::Stop;
use crate::devices::Devices;
use crate::machine::Control;

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// How often input that the guest had no room for is offered again.
const OFFER_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// How much typed input waits for a guest that doesn't read, in bytes; more is lost. Only a terminal's: a pipe waits.
const MAX_PENDING: usize = 64 << 10;

/// Standard input in raw mode, if it is a terminal; as it was once this is dropped.
pub struct RawTerminal(Option<Termios>);

impl RawTerminal {
    /// Makes standard input raw.
    ///
    /// # Errors
    /// A terminal that refuses.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !termios::isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }

    /// Whether standard input is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing can be done about a terminal that is gone.
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Carries standard input to the guest until the machine or the input ends, or Ctrl-A x ends the machine. A paused machine
/// gets none; keys are kept for it.
pub(crate) fn carry_input(devices: &Devices, control: &Control, escapes: bool, ended: &OwnedFd) {
    let stdin = io::stdin();
    let mut filter = EscapeFilter { escapes, pending: false };
    let mut pending = VecDeque::new();
    let mut buffer = [0; 256];
    let mut open = true;
    while !control.is_ending() && (open || !pending.is_empty()) {
        // Keys are always read, for the escape among them; a pipe only when the guest has taken what came before.
        let listen = open && (escapes || pending.is_empty());
        let mut ready = [PollFd::new(ended, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        let patience = if pending.is_empty() { &LOOK } else { &OFFER_AGAIN };
        let count = match poll(&mut ready[..1 + usize::from(listen)], Some(patience)) {
            Ok(_) if ready[1].revents().is_empty() => 0,
            Err(rustix::io::Errno::INTR) => 0,
            Err(_) => return,
            Ok(_) => match rustix::io::read(&stdin, &mut buffer) {
                Ok(0) | Err(_) => {
                    open = false;
                    0
                }
                Ok(count) => count,
            },
        };
        match filter.pass(&buffer[..count]) {
            Some(bytes) => pending.extend(bytes),
            None => return control.end(Ok(Stop::Requested)),
        }
        pending.truncate(MAX_PENDING);
        let waits = pending.is_empty() || control.is_paused();
        let taken = if waits { 0 } else { devices.input(pending.make_contiguous()) };
        pending.drain(..taken);
    }
}

struct EscapeFilter {
    escapes: bool,
    pending: bool,
}

impl EscapeFilter {
    /// What the guest gets of these bytes; `None` for the end.
    fn pass(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (self.pending, byte) {
                (false, ESCAPE) if self.escapes => self.pending = true,
                (true, b'x') => return None,
                (true, ESCAPE) => {
                    self.pending = false;
                    passed.push(ESCAPE);
                }
                (true, byte) => {
                    self.pending = false;
                    passed.extend([ESCAPE, byte]);
                }
                (false, byte) => passed.push(byte),
            }
        }
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(escapes: bool, parts: &[&[u8]]) -> Option<Vec<u8>> {
        let mut filter = EscapeFilter { escapes, pending: false };
        let mut all = vec![];
        for part in parts {
            all.extend(filter.pass(part)?);
        }
        Some(all)
    }

    #[test]
    fn escapes_work_across_reads_and_only_on_terminals() {
        assert_eq!(pass(true, &[b"ab\x01", b"x"]), None);
        assert_eq!(pass(true, &[b"a\x01\x01b"]), Some(b"a\x01b".to_vec()));
        assert_eq!(pass(true, &[b"\x01", b"c"]), Some(b"\x01c".to_vec()));
        assert_eq!(pass(false, &[b"\x01x"]), Some(b"\x01x".to_vec()));
    }
}
