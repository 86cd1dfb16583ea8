//! The operator's side of the serial port and the virtio console: standard input and output, a file, or nothing.
//!
//! Input comes by `input`, raw while the machine runs, if it is a terminal's.
//!
//! The serial port's output waits in `patient`; the virtio console's waits in its device, which gives it a moment more at the
//! end. An output that takes what it gets loses nothing, whenever a machine pauses or ends.

mod input;
mod patient;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, OnceLock};

use rustix::event::Timespec;
use rustix::fs::OFlags;

use crate::config::{ConsoleConfig, SerialConfig};
use crate::devices::virtio::console::output::PromptOutput;
use crate::machine::Control;
use crate::{Error, Result};
use patient::Patient;

pub use input::RawTerminal;
pub(crate) use input::carry_input;

/// How often a wait looks whether it shall end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

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
}
