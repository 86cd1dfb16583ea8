//! A machine of this process's, with the other end of its serial port.
//!
//! Its serial port is a pair of files: umbra's end writes to one, and the guest's words are read from it line by line.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use tempfile::TempDir;
use vmm::config::{ConsoleConfig, CpusConfig, MemoryConfig, SerialConfig, VmConfig};
use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::machine::MachineHandle;
use vmm::memory::conversion::Policy;
use vmm::{Machine, Stop};

use super::{folder, initramfs};
use crate::requirement::{require, require_caps};

/// What a line of the script's begins with.
const MARK: &str = "test: ";
/// How often the guest's output is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How a guest is booted.
pub struct Boot<'a> {
    /// What makes its memory unmappable.
    pub isolation: Isolation,
    /// Modules to load first.
    pub modules: &'a [&'a str],
    /// What it then does.
    pub script: &'a str,
}

/// A guest that runs.
pub struct Linux {
    handle: MachineHandle,
    thread: Option<JoinHandle<vmm::Result<Stop>>>,
    console: File,
    /// What was read of it.
    text: String,
    /// How much of it was handed out.
    taken: usize,
    _folder: TempDir,
}

/// How long a guest may be silent: it is emulated, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(240);

/// Waits until something is so.
///
/// # Errors
/// It is not for as long as a guest may be silent, which `failure` is said of; or what `condition` says.
pub fn wait_until(failure: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !condition()? {
        ensure!(Instant::now() < deadline, "{failure}");
        std::thread::sleep(POLL);
    }
    Ok(())
}

impl Linux {
    /// Boots a guest with the devices of `configure`.
    ///
    /// # Errors
    /// A host that can't do it, or a machine that can't be built.
    pub fn boot(boot: &Boot<'_>, configure: impl FnOnce(&mut VmConfig)) -> anyhow::Result<Self> {
        Self::boot_with(boot, &[], configure)
    }

    /// The same, with programs of this machine that the guest's script may run.
    ///
    /// # Errors
    /// As [`Linux::boot`].
    pub fn boot_with(
        boot: &Boot<'_>,
        programs: &[&Path],
        configure: impl FnOnce(&mut VmConfig),
    ) -> anyhow::Result<Self> {
        let hypervisor = require_caps(&[])?;
        require(hypervisor.caps(), boot.isolation.requirements())?;
        let parts = folder()?;
        let own = tempfile::tempdir().context("cannot make a folder")?;
        let at = |name: &str| -> PathBuf { own.path().join(name) };
        std::fs::write(at("initramfs"), initramfs::build(&parts, boot.modules, programs, boot.script)?)?;
        let mut config = VmConfig {
            kernel: parts.join("vmlinuz"),
            initramfs: Some(at("initramfs")),
            command_line: "console=ttyS0 quiet panic=-1".into(),
            cpus: CpusConfig { boot: 1 },
            memory: MemoryConfig { size: 512 << 20, unmappable: None, window: 0 },
            isolation: Some(boot.isolation),
            access_platform: None,
            conversions: Policy::default(),
            serial: SerialConfig::File(at("console")),
            console: ConsoleConfig::Off,
            rng: None,
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            balloon: None,
        };
        configure(&mut config);
        let output = Output::new(config.serial.clone());
        let events = Arc::new(EventMonitor::new());
        let machine = Machine::build(&hypervisor, &config, &output, &events)?;
        let console = File::open(at("console")).context("cannot read the guest's console")?;
        let (started, handle): (_, Receiver<MachineHandle>) = channel();
        let thread = std::thread::spawn(move || {
            machine.run(&events, |handle| {
                let _ = started.send(handle);
            })
        });
        let handle = handle.recv().context("the machine does not start")?;
        Ok(Self { handle, thread: Some(thread), console, text: String::new(), taken: 0, _folder: own })
    }

    /// The machine.
    pub fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    /// What the guest's console has shown so far, for failures.
    pub fn console(&mut self) -> String {
        // What can't be read is not shown.
        let _ = self.read();
        format!("its console: {}", self.text)
    }

    /// The next thing that the script says.
    ///
    /// # Errors
    /// A guest that is silent for too long, or has ended.
    pub fn says(&mut self) -> anyhow::Result<String> {
        let said = self.says_before(Instant::now() + LIMIT)?;
        said.with_context(|| format!("the guest is silent; its console: {}", self.text))
    }

    fn says_before(&mut self, deadline: Instant) -> anyhow::Result<Option<String>> {
        loop {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            self.read()?;
            if let Some(line) = self.next_line() {
                return Ok(Some(line));
            }
            if ended {
                let end = self.thread.take().map(JoinHandle::join);
                bail!("the guest has ended: {end:?}; its console: {}", self.text);
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// What the script says within a second, if anything.
    ///
    /// # Errors
    /// A guest that has ended.
    pub fn try_says(&mut self) -> anyhow::Result<Option<String>> {
        let deadline = Instant::now() + Duration::from_secs(1);
        self.says_before(deadline)
    }

    /// The script says just this.
    ///
    /// # Errors
    /// It says something else.
    pub fn expect(&mut self, words: &str) -> anyhow::Result<()> {
        let said = self.says()?;
        ensure!(said == words, "the guest said {said:?} instead of {words:?}; its console: {}", self.text);
        Ok(())
    }

    /// Waits until the guest has let go of a device.
    ///
    /// # Errors
    /// It keeps it.
    pub fn lets_go(&self, id: &str) -> anyhow::Result<()> {
        let devices = self.handle.devices();
        let is_gone = || Ok(devices.list().iter().all(|device| device.id != id));
        wait_until(&format!("the guest keeps {id}; its console: {}", self.text), is_gone)?;
        ensure!(!devices.counters().contains_key(id), "{id} still counts");
        Ok(())
    }

    /// The script comes to its end, and the guest switches the machine off.
    ///
    /// # Errors
    /// It says something else, or stops otherwise.
    pub fn powers_off(mut self) -> anyhow::Result<()> {
        self.expect("end")?;
        let deadline = Instant::now() + LIMIT;
        while !self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            ensure!(Instant::now() < deadline, "the guest does not power off; its console: {}", self.text);
            std::thread::sleep(POLL);
        }
        let stop = self.thread.take().context("it has ended already")?.join();
        let stop = stop.map_err(|_| anyhow::anyhow!("the machine panicked"))??;
        ensure!(stop == Stop::PowerOff, "the guest stopped by {stop:?}");
        Ok(())
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        self.console.seek(SeekFrom::Start(self.text.len() as u64))?;
        self.console.read_to_end(&mut bytes)?;
        // The console of these guests is ASCII; anything else would count differently in bytes and text.
        self.text.extend(bytes.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }));
        Ok(())
    }

    fn next_line(&mut self) -> Option<String> {
        loop {
            let rest = &self.text[self.taken..];
            let end = rest.find('\n')?;
            let line = rest[..end].trim_end().strip_prefix(MARK).map(str::to_owned);
            self.taken += end + 1;
            if line.is_some() {
                return line;
            }
        }
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            let _ = thread.join();
        }
    }
}
