//! The operator's side of the serial console: standard input and output, a file, or nothing.
//!
//! On a terminal, input is raw while the machine runs: every key goes to the guest. Ctrl-A x ends the machine, and
//! Ctrl-A Ctrl-A sends one Ctrl-A. The terminal gets back its settings when the [`RawTerminal`] is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, OptionalActions, Termios};

use crate::config::SerialConfig;
use crate::devices::Devices;
use crate::{Error, Result};

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// How often the input looks whether it shall end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Opens the place where the serial port writes to.
///
/// # Errors
/// A file that can't be created.
pub fn output(config: &SerialConfig) -> Result<Box<dyn Write + Send>> {
    Ok(match config {
        SerialConfig::Tty => Box::new(Unbuffered(io::stdout())),
        SerialConfig::File(path) => Box::new(File::create(path).map_err(|source| Error::File {
            operation: "create",
            role: "serial output",
            path: path.clone(),
            source,
        })?),
        SerialConfig::Null => Box::new(io::sink()),
    })
}

/// Standard output without a line buffer: the guest's prompts have no newline.
struct Unbuffered(io::Stdout);

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        rustix::io::write(&self.0, bytes).map_err(Into::into)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

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

/// Carries standard input to the guest until `stop`, the end of the input, or Ctrl-A x, for which it calls `quit`.
pub fn carry_input(devices: &Arc<Devices>, stop: &AtomicBool, escapes: bool, quit: impl FnOnce()) {
    let mut stdin = io::stdin().lock();
    let mut filter = EscapeFilter { escapes, pending: false };
    let mut buffer = [0; 256];
    while !stop.load(Ordering::Acquire) {
        let mut ready = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        match poll(&mut ready, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => match filter.pass(&buffer[..count]) {
                Some(bytes) => devices.serial.input(&bytes, stop),
                None => return quit(),
            },
        }
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
