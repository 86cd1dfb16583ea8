//! Follows what a child writes: a guest's serial console, or a program's standard error.
//!
//! A thread reads it to its end, so that the writer never waits, keeps the last lines for error messages, sends the guest's
//! [`markers`] on with the time at which each arrived, and notices when its kernel misses a processor.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};

use super::markers;

/// Lines that are kept.
const KEPT: usize = 40;
/// Longer lines are cut in pieces.
const LONGEST_LINE: u64 = 1000;

/// A line by which the guest says how far it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Marker {
    /// When it was complete.
    pub at: Instant,
    /// The line, from [`markers::PREFIX`] on.
    pub text: String,
}

/// What is left of an output that has ended.
#[derive(Debug, Default)]
pub struct Said {
    /// Its last lines.
    pub last_lines: VecDeque<String>,
    /// Whether the guest's kernel has missed one of its processors.
    pub stalled: bool,
}

/// A thread that follows one output.
pub struct Follower {
    thread: JoinHandle<Said>,
    markers: Receiver<Marker>,
}

impl Follower {
    /// Starts to read `output`. With `show`, each line goes to standard error, too.
    pub fn start(output: impl Read + Send + 'static, show: bool) -> Result<Self> {
        let (sender, markers) = channel();
        let thread = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || follow(output, show, &sender))
            .context("cannot start a thread")?;
        Ok(Self { thread, markers })
    }

    /// The markers as they arrive. The channel is closed when the output is.
    pub fn markers(&self) -> &Receiver<Marker> {
        &self.markers
    }

    /// Waits for the end of the output, which whoever writes it must have closed.
    pub fn end(self) -> Said {
        self.thread.join().unwrap_or_default()
    }
}

fn follow(output: impl Read, show: bool, sender: &Sender<Marker>) -> Said {
    let mut output = BufReader::new(output);
    let mut said = Said::default();
    loop {
        let mut line = Vec::new();
        match output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return said,
            Ok(_) => {}
        }
        let at = Instant::now();
        let line = printable(&line);
        if show {
            eprintln!("{line}");
        }
        said.stalled |= tells_of_a_stall(&line);
        if let Some(start) = line.find(markers::PREFIX) {
            // Nobody may be listening any more.
            let _ = sender.send(Marker { at, text: line[start..].trim_end().to_owned() });
        }
        if said.last_lines.len() == KEPT {
            said.last_lines.pop_front();
        }
        said.last_lines.push_back(line);
    }
}

/// Whether a line is of Linux's, about a processor (or a task) that has held RCU up for 21 seconds.
fn tells_of_a_stall(line: &str) -> bool {
    line.contains("rcu: INFO: ") && line.contains("detected stalls on CPUs")
}

/// The line without what could steer the user's terminal: escape sequences and control characters.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut printable = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\x1b' && characters.next_if_eq(&'[').is_some() {
            // A sequence ends with a letter or one of a few signs.
            while characters.next_if(|next| !('@'..='~').contains(next)).is_some() {}
            characters.next();
        } else if !character.is_control() {
            printable.push(character);
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(text: &'static [u8]) -> (Vec<String>, Vec<String>) {
        let follower = Follower::start(text, false).unwrap();
        let markers = follower.markers().iter().map(|marker| marker.text).collect();
        (markers, follower.end().last_lines.into())
    }

    #[test]
    fn markers_are_sent_and_lines_kept() {
        let (markers, lines) = followed(b"boot\r\n\x1b[2Jumbra-demo: init\r\nother: umbra-demo: b \r\nguest:/# ");
        assert_eq!(markers, ["umbra-demo: init", "umbra-demo: b"]);
        assert_eq!(lines, ["boot", "umbra-demo: init", "other: umbra-demo: b ", "guest:/# "]);
    }

    #[test]
    fn a_missed_processor_is_not_forgotten() {
        let said = |text: &'static str| Follower::start(text.as_bytes(), false).unwrap().end();
        let stall = "[ 40.5] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n".to_owned();
        let report: &'static str = (stall + &"a register\n".repeat(2 * KEPT)).leak();
        assert!(said(report).stalled);
        assert!(!said("rcu: INFO: something else\n").stalled);
    }

    #[test]
    fn nothing_steers_the_terminal() {
        for (line, expected) in [
            ("a\x1b[6nb\x1b[1;31mc", "abc"),
            ("a\x1b]0;title\x07b\x1bc", "a]0;titlebc"),
            ("a\u{9b}2Jb\x08\t", "a2Jb"),
            ("a\x1b[", "a"),
            ("a\x1b[1", "a"),
            ("a\x1b", "a"),
        ] {
            assert_eq!(printable(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(printable(b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn endless_line_and_many_lines_are_bounded() {
        let text: &'static [u8] = vec![b'x'; 100_000].leak();
        let (_, lines) = followed(text);
        assert_eq!(lines.len(), KEPT);
        assert!(lines.iter().all(|line| line.len() <= 1000));
    }
}
