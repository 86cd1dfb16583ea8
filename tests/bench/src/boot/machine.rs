//! Machines that are booted, and how far they are.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What the guest's init says first.
pub const INIT: &str = "umbra-demo: init";
/// How long a boot may take.
const LIMIT: Duration = Duration::from_secs(180);
/// How long umbra may take to tell its statistics.
const ANSWER: Duration = Duration::from_secs(30);
/// What both get as the kernel's command line.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";
const MEMORY: &str = "512M";

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's pc machine.
    Qemu,
    /// Umbra with `isolation=none`.
    None,
    /// Umbra with `isolation=software`.
    Software,
    /// The same, with a compressed kernel.
    Compressed,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Qemu, Self::None, Self::Software, Self::Compressed];

    /// Its name among the figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::None => "none",
            Self::Software => "software",
            Self::Compressed => "compressed",
        }
    }
}

/// How long a boot took.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// Until the guest's init spoke.
    pub to_init: Duration,
    /// What umbra tells of it.
    pub told: Option<Told>,
}

/// What umbra tells of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// How long it took until the guest ran.
    pub to_guest: Duration,
    /// How long conversions took, of those until the guest's init.
    pub converting: Duration,
    /// Whether this is not the guest that was started.
    pub reset: bool,
}

/// What all boot.
#[derive(Debug)]
pub struct Machines<'a> {
    /// The umbra program.
    pub umbra: &'a Path,
    /// The kernel's ELF file.
    pub vmlinux: &'a Path,
    /// The kernel as distributions ship it.
    pub vmlinuz: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// A folder for umbra's events.
    pub folder: &'a Path,
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Either may fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machines<'_> {
    /// Boots one machine, and ends it once it has reached its init.
    ///
    /// # Errors
    /// A program that can't be started or ends early, a guest that is not heard of in time, events that can't be read.
    pub fn boot(&self, kind: Kind) -> Result<Boot> {
        let events = self.folder.join("events");
        let mut command = match kind {
            Kind::Qemu => self.qemu(),
            Kind::None => self.umbra(kind, self.vmlinux, &events),
            Kind::Software => self.umbra(kind, self.vmlinux, &events),
            Kind::Compressed => self.umbra(kind, self.vmlinuz, &events),
        };
        let errors = self.folder.join("errors");
        let log = std::fs::File::create(&errors).with_context(|| format!("cannot create {}", errors.display()))?;
        // An open input: a serial console whose input ends may end the machine.
        let (input, _keep) = std::io::pipe().context("cannot make a pipe")?;
        command.stdin(input).stdout(Stdio::piped()).stderr(log);
        let start = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let mut running = Running(child);
        let output = running.0.stdout.take().context("a machine has no output")?;
        let to_init = match wait_for_init(output) {
            Ok(at) => at.duration_since(start),
            Err(error) => {
                drop(running);
                bail!("{error:#}; it said: {}", std::fs::read_to_string(&errors).unwrap_or_default().trim());
            }
        };
        let told = match kind {
            Kind::Qemu => None,
            _ => Some(ask(&running.0, &events)?),
        };
        drop(running);
        if told.is_some() {
            std::fs::remove_file(&events).context("cannot remove umbra's events")?;
        }
        Ok(Boot { to_init, told })
    }

    fn umbra(&self, kind: Kind, kernel: &Path, events: &Path) -> Command {
        let (isolation, unmappable) = if kind == Kind::None { ("none", "off") } else { ("software", "on") };
        let mut monitor = OsString::from("path=");
        monitor.push(events);
        let mut command = Command::new(self.umbra);
        command.arg("run").arg("--kernel").arg(kernel).arg("--initramfs").arg(self.initramfs);
        command.args(["--cmdline", COMMAND_LINE, "--cpus", "boot=1", "--serial", "tty"]);
        command.arg("--memory").arg(format!("size={MEMORY},unmappable={unmappable}"));
        command.arg("--platform").arg(format!("isolation={isolation}"));
        command.arg("--event-monitor").arg(monitor);
        command
    }

    fn qemu(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "pc", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", MEMORY]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.arg("-kernel").arg(self.vmlinux).arg("-initrd").arg(self.initramfs);
        command.args(["-append", COMMAND_LINE]);
        command
    }
}

/// When the guest's init spoke.
fn wait_for_init(output: ChildStdout) -> Result<Instant> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while matches!(output.read_until(b'\n', &mut line), Ok(1..)) {
            if line.windows(INIT.len()).any(|part| part == INIT.as_bytes()) {
                let _ = sender.send(Instant::now()); // nobody waits any more after the limit
                return;
            }
            line.clear();
        }
    });
    match receiver.recv_timeout(LIMIT) {
        Ok(at) => Ok(at),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("the guest has no init after {} s", LIMIT.as_secs()),
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the machine ended before its init"),
    }
}

/// Ends umbra, which then tells in its events how far it came.
fn ask(umbra: &Child, events: &Path) -> Result<Told> {
    kill_process(Pid::from_child(umbra), Signal::TERM).context("cannot end umbra")?;
    let deadline = Instant::now() + ANSWER;
    loop {
        let text = std::fs::read_to_string(events).context("cannot read umbra's events")?;
        if let Some(told) = told(&text) {
            ensure!(!told.reset, "the guest was reset on its way to its init");
            return Ok(told);
        }
        ensure!(Instant::now() < deadline, "umbra did not tell when its guest started, and how long conversions took");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What stands in umbra's events, once all of it does.
fn told(events: &str) -> Option<Told> {
    let (mut to_guest, mut converting, mut reset) = (None, None, false);
    // The last one may be in the middle of being written.
    for event in serde_json::Deserializer::from_str(events).into_iter::<Value>().map_while(Result::ok) {
        match (event["source"].as_str()?, event["event"].as_str()?) {
            ("vm", "booted") => {
                let time = &event["timestamp"];
                let nanoseconds = u32::try_from(time["nanos"].as_u64()?).ok()?;
                to_guest = Some(Duration::new(time["secs"].as_u64()?, nanoseconds));
            }
            ("memory", "stats") => {
                let nanoseconds = event["properties"]["conversion_latency"]["sum_ns"].as_u64()?;
                converting = Some(Duration::from_nanos(nanoseconds));
            }
            ("vm", "rebooting") => reset = true,
            _ => {}
        }
    }
    Some(Told { to_guest: to_guest?, converting: converting?, reset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_tell_when_the_guest_started_and_how_long_it_converted() {
        let booted =
            r#"{"timestamp": {"secs": 1, "nanos": 500}, "source": "vm", "event": "booted", "properties": null}"#;
        let stats = r#"{"timestamp": {"secs": 3, "nanos": 0}, "source": "memory", "event": "stats",
            "properties": {"conversion_latency": {"counts": [1], "sum_ns": 42}}}"#;
        let reset = r#"{"source": "vm", "event": "rebooting", "properties": null}"#;
        let expected = Told { to_guest: Duration::new(1, 500), converting: Duration::from_nanos(42), reset: false };
        assert_eq!(told(&format!("{booted}\n\n{stats}\n\n")), Some(expected));
        let expected = Told { reset: true, ..expected };
        assert_eq!(told(&format!("{booted}\n\n{stats}\n\n{reset}\n\n{booted}\n\n")), Some(expected));
        assert_eq!(told(&format!("{booted}\n\n{}", &stats[..40])), None, "it is still being written");
        assert_eq!(told(""), None);
    }

    #[test]
    fn a_program_that_ends_without_a_word_is_an_error() {
        let child = Command::new("true").stdout(Stdio::piped()).spawn();
        let mut running = Running(child.unwrap());
        let error = wait_for_init(running.0.stdout.take().unwrap()).unwrap_err();
        assert!(error.to_string().contains("before its init"), "{error}");
    }

    #[test]
    fn init_is_heard_in_the_noise() {
        let child = Command::new("echo").arg(format!("noise\n[ 1.0] x{INIT}\nmore")).stdout(Stdio::piped()).spawn();
        let mut running = Running(child.unwrap());
        wait_for_init(running.0.stdout.take().unwrap()).unwrap();
    }

    #[test]
    fn kinds_have_their_numbers() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }
}
