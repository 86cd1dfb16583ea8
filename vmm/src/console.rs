//! The operator's side of the serial port and the virtio console: standard input and output, a file, or nothing.
//!
//! On a terminal, input is raw while the machine runs: every key goes to the guest. Ctrl-A x ends the machine, whether the
//! guest reads or not, and Ctrl-A Ctrl-A sends one Ctrl-A. The terminal gets back its settings when the [`RawTerminal`] is
//! dropped.
//!
//! An output that takes nothing (a pipe that nobody reads) holds the guest up, but never the end of the machine nor its
//! pauses. What a vCPU is writing to the serial port when the machine pauses is kept, and written once it goes on, before
//! anything else. The virtio console's output waits in its device, which gives it a moment more at the end. An output that
//! takes what it gets loses nothing, whenever a machine pauses or ends.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::termios::{self, OptionalActions, Termios};

use crate::config::{ConsoleConfig, SerialConfig};
use crate::devices::Devices;
use crate::devices::virtio::console::output::PromptOutput;
use crate::machine::Control;
use crate::{Error, Result, Stop};

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// How often a wait looks whether it shall end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How often input that the guest had no room for is offered again.
const OFFER_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// How much typed input waits for a guest that doesn't read, in bytes; more is lost. Only a terminal's: a pipe waits.
const MAX_PENDING: usize = 64 << 10;

/// Where the serial port and the virtio console write to, each opened once and kept over resets.
pub struct Output {
    config: SerialConfig,
    serial: Opened,
    console: Opened,
}

/// What an output was opened as; `None` for nowhere.
type Opened = OnceLock<Option<Arc<OwnedFd>>>;

impl Output {
    /// Opens nothing yet. `config` is the serial port's; the console's comes with the machine.
    pub fn new(config: SerialConfig) -> Self {
        Self { config, serial: Opened::new(), console: Opened::new() }
    }

    /// The serial port's writer for one machine, which waits no longer than it lives and runs.
    ///
    /// # Errors
    /// A file that can't be created.
    pub(crate) fn writer(&self, control: Arc<Control>) -> Result<Box<dyn Write + Send>> {
        let file = opened(&self.serial, &self.config, "serial output")?;
        Ok(match file {
            Some(file) => Box::new(Patient::new(file, control)),
            None => Box::new(io::sink()),
        })
    }

    /// The virtio console's writer, if there is one: it never waits, which is the device's to do.
    ///
    /// # Errors
    /// A file that can't be created.
    pub(crate) fn console_writer(&self, config: &ConsoleConfig) -> Result<Option<Box<dyn Write + Send>>> {
        let place = match config {
            ConsoleConfig::Off => return Ok(None),
            ConsoleConfig::Tty => SerialConfig::Tty,
            ConsoleConfig::File(path) => SerialConfig::File(path.clone()),
            ConsoleConfig::Null => SerialConfig::Null,
        };
        let file = opened(&self.console, &place, "console output")?;
        Ok(Some(match file {
            Some(file) => Box::new(PromptOutput::new(file)),
            None => Box::new(io::sink()),
        }))
    }
}

/// What was opened, or is now.
fn opened(opened: &Opened, place: &SerialConfig, role: &'static str) -> Result<Option<Arc<OwnedFd>>> {
    if let Some(file) = opened.get() {
        return Ok(file.clone());
    }
    let file = open(place, role)?;
    Ok(opened.get_or_init(|| file).clone())
}

fn open(place: &SerialConfig, role: &'static str) -> Result<Option<Arc<OwnedFd>>> {
    let file = match place {
        SerialConfig::Tty => {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            stdout.map_err(Error::system("keep standard output"))?
        }
        SerialConfig::File(path) => {
            let failed = |source| Error::File { operation: "create", role, path: path.clone(), source };
            // A pipe is not waited for, neither here nor when it is full: see `Patient`.
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
            let file = options.open(path).map_err(|error| match error.raw_os_error() {
                Some(libc::ENXIO) => failed(io::Error::other("nobody reads this pipe: start its reader first")),
                _ => failed(error),
            });
            file?.into()
        }
        SerialConfig::Null => return Ok(None),
    };
    Ok(Some(Arc::new(file)))
}

/// A writer that waits until its file takes something, but not longer than the machine lives and runs.
struct Patient {
    file: Arc<OwnedFd>,
    control: Arc<Control>,
    kept: Arc<Mutex<Kept>>,
}

/// What a pause came in between of.
struct Kept {
    output: PromptOutput,
    /// A byte for each vCPU and pause, at the most.
    bytes: Vec<u8>,
    /// There is a thread that writes them once the machine goes on.
    awaited: bool,
}

impl Kept {
    /// Writes what the file takes without waiting. Returns whether that was all.
    fn put_out(&mut self) -> io::Result<bool> {
        while !self.bytes.is_empty() {
            match self.output.write(&self.bytes) {
                Ok(written) => drop(self.bytes.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        Ok(true)
    }
}

impl Patient {
    fn new(file: Arc<OwnedFd>, control: Arc<Control>) -> Self {
        let kept = Kept { output: PromptOutput::new(file.clone()), bytes: Vec::new(), awaited: false };
        Self { file, control, kept: Arc::new(Mutex::new(kept)) }
    }

    /// Starts a thread that writes what is kept once the machine goes on: the guest may have nothing more to say. It ends
    /// with that, or with the machine.
    fn write_later(&self, kept: &mut Kept) {
        let (file, control, shared) = (self.file.clone(), self.control.clone(), self.kept.clone());
        let wait = move |ended: &OwnedFd| {
            let ended = || PollFd::new(ended, PollFlags::IN);
            loop {
                let ending = control.is_ending();
                if !control.is_paused() || ending {
                    let mut kept = lock(&shared);
                    // A failure is told when the guest writes next.
                    if ending || kept.put_out().unwrap_or(true) {
                        kept.awaited = false;
                        return;
                    }
                    drop(kept);
                    let _ = poll(&mut [PollFd::new(&*file, PollFlags::OUT), ended()], Some(&LOOK));
                } else {
                    // Nothing else to wait for but the time.
                    let _ = poll(&mut [ended()], Some(&LOOK));
                }
            }
        };
        // Without a thread the guest's next write does it.
        kept.awaited = kept.awaited || self.control.helpers().start("console", wait).is_ok();
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // Nothing in there panics half-way.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = lock(&self.kept);
        kept.bytes.extend_from_slice(bytes);
        loop {
            // First of all: a file that takes it gets it, whatever becomes of the machine.
            if kept.put_out()? {
                return Ok(bytes.len());
            }
            // Nobody waits for what a machine that has ended still says; a paused one says it later.
            if self.control.is_ending() {
                return Ok(bytes.len());
            }
            if self.control.is_paused() {
                self.write_later(&mut kept);
                return Ok(bytes.len());
            }
            drop(kept);
            match poll(&mut [PollFd::new(&*self.file, PollFlags::OUT)], Some(&LOOK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            kept = lock(&self.kept);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.kept).put_out().map(drop)
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        // The last chance of what a pause or the end came in between of.
        let _ = lock(&self.kept).put_out();
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
    use std::fs::File;
    use std::io::Read;

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

    #[test]
    fn a_pipe_needs_a_reader_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let place = SerialConfig::File(pipe.clone());
        let error = crate::error::chain(&open(&place, "serial output").unwrap_err());
        assert!(error.contains(pipe.to_str().unwrap()) && error.contains("nobody reads"), "{error}");
        let flags = (OFlags::RDONLY | OFlags::NONBLOCK).bits() as i32;
        let mut reader = OpenOptions::new().read(true).custom_flags(flags).open(&pipe).unwrap();
        let file = open(&place, "serial output").unwrap().unwrap();
        let control = Arc::new(Control::new(Vec::new(), true));
        Patient::new(file, control).write_all(b"said").unwrap();
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "said");
    }

    /// A pipe that takes nothing more.
    fn full_pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::empty()).unwrap();
        (reader, writer)
    }

    #[test]
    fn what_a_pause_interrupts_is_written_later_and_in_order() {
        let (reader, writer) = full_pipe();
        let control = Arc::new(Control::new(Vec::new(), true));
        let mut output = Patient::new(Arc::new(writer), control.clone());
        control.pause();
        // Nobody reads, and neither waits.
        assert_eq!((output.write(b"a").unwrap(), output.write(b"b").unwrap()), (1, 1));
        control.resume();
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            File::from(reader).read_to_end(&mut all).unwrap();
            all
        });
        assert_eq!(output.write(b"c").unwrap(), 1);
        drop(output);
        assert!(reading.join().unwrap().ends_with(b".abc"));
    }

    #[test]
    fn what_a_pause_interrupts_is_written_although_the_guest_says_nothing_more() {
        let (reader, writer) = full_pipe();
        let control = Arc::new(Control::new(Vec::new(), true));
        let mut output = Patient::new(Arc::new(writer), control.clone());
        control.pause();
        assert_eq!(output.write(b"a").unwrap(), 1);
        control.resume();
        let mut reader = File::from(reader);
        let mut byte = [0];
        while byte != *b"a" {
            reader.read_exact(&mut byte).unwrap();
        }
    }

    #[test]
    fn who_waits_for_a_reader_that_never_comes_is_gone_with_the_machine() {
        for resumed in [false, true] {
            let (_reader, writer) = full_pipe();
            let control = Arc::new(Control::new(Vec::new(), true));
            let mut output = Patient::new(Arc::new(writer), control.clone());
            control.pause();
            assert_eq!(output.write(b"a").unwrap(), 1);
            assert_eq!(Arc::strong_count(&control), 3, "the writer, and the thread that waits");
            if resumed {
                control.resume();
            }
            control.end(Ok(Stop::PowerOff));
            control.helpers().end();
            assert_eq!(Arc::strong_count(&control), 2);
            drop(output);
        }
    }

    #[test]
    fn a_file_gets_all_that_a_machine_says_although_it_pauses_or_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let control = Arc::new(Control::new(Vec::new(), true));
        let mut output = Patient::new(Arc::new(file.reopen().unwrap().into()), control.clone());
        control.pause();
        output.write_all(b"paused").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"paused");
        control.end(Ok(Stop::PowerOff));
        output.write_all(b", ended").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"paused, ended");
    }
}
