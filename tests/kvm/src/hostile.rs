//! A guest that does whatever a test tells it, run by the real `umbra` program.
//!
//! Its kernel is a machine monitor of a few hundred instructions (`program`), wrapped into an ELF file (`image`). It
//! has all of the guest's memory before it twice, through the private and through the shared alias, and takes tasks
//! over the serial port: write here, read there, ask for that conversion, write this MSR. It announces nothing of its own
//! accord and checks nothing. While it waits for the next task, the test looks at the VMM's memory from outside
//! ([`crate::umbra`]).
//!
//! A fault of the guest's is a reply, so a refused access does not end the guest. Each wait has a limit, the whole guest
//! has one, and `umbra` is killed when the [`HostileGuest`] is dropped. A task costs a few milliseconds in the lab.

pub mod disk;
pub mod image;
mod program;
mod task;
pub mod virtio;

use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use arch::x86_64::Isolation;
use arch::x86_64::map::{SLEEP_CONTROL_PORT, SLEEP_ENABLE, SLEEP_TYPE_OFF, SLEEP_TYPE_SHIFT};
use hypervisor::{GpaRange, Hypervisor, PageState};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::requirement::{require, require_caps};
use crate::umbra::cgroup::MemoryCgroup;
use crate::umbra::events::{EventFile, Statistics};
use crate::umbra::process::{Lines, Running};
use crate::umbra::shared_memory::SharedMemoryFile;
use task::{Fault, Reply, Task};

pub use image::{vmlinux, vmlinux_for};
pub use program::MAP_GPA_RANGE;

/// How long a guest may live, from the start of `umbra` to its end. Most need less than two seconds and some half a minute,
/// unless much else runs.
const LIFE: Duration = Duration::from_secs(300);

/// Vector of a general protection fault.
const GENERAL_PROTECTION: u64 = 13;

/// Attribute bit of KVM_HC_MAP_GPA_RANGE for private pages (Linux `include/uapi/linux/kvm_para.h`).
pub const ENCRYPTED: u64 = 1 << 4;

/// The value that KVM_HC_MAP_GPA_RANGE returns for a refusal: `-EINVAL`.
pub const REFUSED: i64 = -22;

/// How to boot the guest.
#[derive(Debug)]
pub struct Boot<'a> {
    /// What makes its memory unmappable.
    pub isolation: Isolation,
    /// Its size of memory, as on the command line.
    pub memory: &'a str,
    /// Where to count the memory that it costs.
    pub cgroup: Option<&'a MemoryCgroup>,
    /// What conversions may do, as on the command line.
    pub conversions: Option<&'a str>,
    /// Whether the API serves.
    pub api: bool,
    /// The image of a disk; there is none without.
    pub disk: Option<&'a Path>,
    /// Devices behind that on the bus, as on the command line.
    pub devices: &'a [String],
}

impl Default for Boot<'_> {
    fn default() -> Self {
        Self {
            isolation: Isolation::Software,
            memory: "64M",
            cgroup: None,
            conversions: None,
            api: false,
            disk: None,
            devices: &[],
        }
    }
}

/// A running guest, and the `umbra` that runs it.
#[derive(Debug)]
pub struct HostileGuest {
    umbra: Running,
    input: ChildStdin,
    console: Lines,
    events: EventFile,
    deadline: Instant,
    c_bit_mask: u64,
    // The kernel, the events and the socket are in here.
    folder: TempDir,
}

/// What is left of a guest.
#[derive(Debug)]
pub struct Ending {
    /// The exit status of `umbra`.
    pub status: ExitStatus,
    /// The statistics that it gave last.
    pub statistics: Statistics,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl HostileGuest {
    /// Boots a guest with 64 MiB of memory under `isolation=software`.
    ///
    /// # Errors
    /// [`crate::requirement::Unavailable`] on a host that can't; a guest that does not come up.
    pub fn boot() -> anyhow::Result<Self> {
        Self::boot_with(&Boot::default())
    }

    /// Boots a guest.
    ///
    /// # Errors
    /// As [`HostileGuest::boot`].
    pub fn boot_with(boot: &Boot<'_>) -> anyhow::Result<Self> {
        let kvm = require_caps(&[])?;
        require(kvm.caps(), boot.isolation.requirements())?;
        let program = crate::umbra::program()?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let kernel = folder.path().join("vmlinux");
        std::fs::write(&kernel, image::vmlinux()).context("cannot write the guest's kernel")?;
        let events = EventFile::new(folder.path().join("events"));

        let unmappable = if boot.isolation.is_unmappable() { "on" } else { "off" };
        let mut command = match boot.cgroup {
            Some(cgroup) => cgroup.command_inside(&program),
            None => Command::new(program),
        };
        command.args(["run", "--serial", "tty", "--cmdline", "hostile", "--kernel"]).arg(&kernel);
        command.args(["--memory", &format!("size={},unmappable={unmappable}", boot.memory)]);
        command.args(["--platform", &format!("isolation={}", boot.isolation)]);
        if let Some(conversions) = boot.conversions {
            command.args(["--conversions", conversions]);
        }
        if let Some(disk) = boot.disk {
            command.args(["--disk", &format!("path={}", disk.display())]);
        }
        command.args(boot.devices);
        if boot.api {
            command.arg("--api-socket").arg(folder.path().join("api"));
        }
        command.args(["--event-monitor", &format!("path={}", events.path().display())]);
        let mut umbra = Running::start(command.stdin(Stdio::piped()))?;
        let input = umbra.take_stdin().context("umbra has no input")?;
        let console = umbra.take_stdout_lines().context("umbra has no output")?;
        let deadline = Instant::now() + LIFE;
        let mut guest = Self { umbra, input, console, events, deadline, c_bit_mask: 0, folder };
        guest.c_bit_mask = guest.comes_up()?;
        Ok(guest)
    }

    /// Where the API serves, if it does.
    pub fn api_socket(&self) -> std::path::PathBuf {
        self.folder.path().join("api")
    }

    /// The file that it writes events to.
    pub fn events(&self) -> &Path {
        self.events.path()
    }

    /// Waits for the end of `umbra`, which somebody else brings about.
    ///
    /// # Errors
    /// An `umbra` that goes on.
    pub fn is_ended(mut self) -> anyhow::Result<Ending> {
        self.ends()
    }

    /// Waits until the guest's kernel says that it runs. Returns the bit by which it chooses the private alias, or 0.
    ///
    /// # Errors
    /// A guest that says something else, or nothing.
    pub fn comes_up(&mut self) -> anyhow::Result<u64> {
        let line = self.next_line()?;
        let mask = line.strip_prefix(program::BANNER).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let mask = mask.with_context(|| format!("the guest came up with {line:?}"))?;
        // Its launch left much behind.
        self.settles()?;
        Ok(mask)
    }

    /// Waits until the VMM populates no more memory for the guest: until then it may get some that it does not touch.
    ///
    /// # Errors
    /// A VMM that goes on.
    pub fn is_populated(&self) -> anyhow::Result<()> {
        let threads = format!("/proc/{}/task", self.umbra.pid().as_raw_nonzero());
        loop {
            let tasks = std::fs::read_dir(&threads).with_context(|| format!("cannot list {threads}"))?;
            // Threads may end meanwhile.
            let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
            if !names.into_iter().any(|name| name.trim() == "populate") {
                return Ok(());
            }
            ensure!(Instant::now() < self.deadline, "the VMM populates the guest's memory without an end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the VMM has given back all memory that pages have left: large discards run behind the guest's back.
    ///
    /// # Errors
    /// A VMM that does not.
    pub fn settles(&mut self) -> anyhow::Result<()> {
        while self.statistics()?.discard_backlog_bytes > 0 {
            ensure!(Instant::now() < self.deadline, "some memory is not given back: {:?}", self.statistics()?);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The bit of its page tables by which the guest chooses the private alias, as CPUID tells it; 0 for none.
    pub fn c_bit_mask(&self) -> u64 {
        self.c_bit_mask
    }

    fn next_line(&mut self) -> anyhow::Result<String> {
        match self.console.next_before(self.deadline) {
            Some(line) => Ok(line),
            None => {
                let status = self.umbra.try_wait()?;
                let state = status.map_or_else(|| "still runs".into(), |status| format!("ended with {status}"));
                let said = self.umbra.stderr();
                bail!("the guest says no more; umbra {state}; its standard error: {said:?}");
            }
        }
    }

    fn exchange(&mut self, task: &Task) -> anyhow::Result<Reply> {
        let step = || format!("the guest was told: {task:?}");
        self.input.write_all(&task.encode()).with_context(step)?;
        let line = self.next_line().with_context(step)?;
        let reply = Reply::parse(&line).with_context(step);
        // An answer that is none often means that the guest was reset: umbra says why.
        reply.with_context(|| format!("umbra's standard error: {:?}", self.umbra.stderr()))
    }

    /// Does a task that must not fault.
    fn done(&mut self, task: &Task) -> anyhow::Result<[u64; 2]> {
        match self.exchange(task)? {
            Reply::Done(values) => Ok(values),
            Reply::Fault(fault) => bail!("the guest was told: {task:?}, and faulted: {fault:?}"),
        }
    }

    /// Writes a word over and over to a range.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn fills(&mut self, alias: PageState, range: GpaRange, word: u64) -> anyhow::Result<()> {
        self.done(&Task::Fill { alias, range, word }).map(drop)
    }

    /// Writes a word to the start of each page of a range.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn touches(&mut self, alias: PageState, range: GpaRange, word: u64) -> anyhow::Result<()> {
        self.done(&Task::Touch { alias, range, word }).map(drop)
    }

    /// Reads a range, which must hold nothing but this word.
    ///
    /// # Errors
    /// The first word that differs, or a fault of the guest's.
    pub fn sees(&mut self, alias: PageState, range: GpaRange, word: u64) -> anyhow::Result<()> {
        let [same, found] = self.done(&Task::Compare { alias, range, word })?;
        if same != range.len() / 8 {
            let gpa = range.start() + 8 * same;
            bail!(
                "the guest reads {found:#x} at {gpa:#x} through the {alias} alias, expected {word:#x} in all of {range}"
            );
        }
        Ok(())
    }

    /// Reads one word.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn reads(&mut self, alias: PageState, gpa: u64) -> anyhow::Result<u64> {
        self.done(&Task::Read { alias, gpa }).map(|[word, _]| word)
    }

    /// Announces a conversion, which must be granted.
    ///
    /// # Errors
    /// A refusal.
    pub fn converts(&mut self, range: GpaRange, to: PageState) -> anyhow::Result<()> {
        let attributes = if to == PageState::Private { ENCRYPTED } else { 0 };
        let answer = self.asks(range.start(), range.pages(), attributes)?;
        ensure!(answer == 0, "the conversion of {range} to {to} returned {answer}");
        Ok(())
    }

    /// Announces a conversion, which must be refused.
    ///
    /// # Errors
    /// Any other answer.
    pub fn may_not_convert(&mut self, range: GpaRange, to: PageState) -> anyhow::Result<()> {
        let attributes = if to == PageState::Private { ENCRYPTED } else { 0 };
        let answer = self.asks(range.start(), range.pages(), attributes)?;
        ensure!(answer == REFUSED, "the conversion of {range} to {to} returned {answer}, expected {REFUSED}");
        Ok(())
    }

    /// Issues KVM_HC_MAP_GPA_RANGE with any arguments, and returns what is in RAX afterwards.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn asks(&mut self, gpa: u64, pages: u64, attributes: u64) -> anyhow::Result<i64> {
        let call = Task::Hypercall { number: program::MAP_GPA_RANGE, arguments: [gpa, pages, attributes] };
        self.done(&call).map(|[answer, _]| answer as i64)
    }

    /// Converts a range to shared and back, so many pages at a time, and touches each page in either state. Returns how
    /// many of the conversions were refused.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn churns(&mut self, range: GpaRange, pages_at_a_time: u64) -> anyhow::Result<u64> {
        self.done(&Task::Churn { range, pages_at_a_time }).map(|[refused, _]| refused)
    }

    /// Writes a word, which must end in a general protection fault.
    ///
    /// # Errors
    /// A write that works, or another fault.
    pub fn may_not_write(&mut self, alias: PageState, gpa: u64, word: u64) -> anyhow::Result<()> {
        let task = Task::Touch { alias, range: GpaRange::page_of(gpa)?, word };
        match self.exchange(&task)? {
            Reply::Fault(Fault { vector: GENERAL_PROTECTION, .. }) => Ok(()),
            other => bail!("the guest was told: {task:?}: {other:?}, expected a #GP"),
        }
    }

    /// Writes an MSR, which must work.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn writes_msr(&mut self, index: u32, value: u64) -> anyhow::Result<()> {
        self.done(&Task::WriteMsr { index, value }).map(drop)
    }

    /// Writes an MSR, which must end in a general protection fault.
    ///
    /// # Errors
    /// A write that works, or another fault.
    pub fn may_not_write_msr(&mut self, index: u32, value: u64) -> anyhow::Result<()> {
        match self.exchange(&Task::WriteMsr { index, value })? {
            Reply::Fault(Fault { vector: GENERAL_PROTECTION, .. }) => Ok(()),
            other => bail!("the guest wrote {value:#x} to MSR {index:#x}: {other:?}, expected a #GP"),
        }
    }

    /// Reads an MSR.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn reads_msr(&mut self, index: u32) -> anyhow::Result<u64> {
        self.done(&Task::ReadMsr { index }).map(|[value, _]| value)
    }

    /// Writes a byte to a port, and is there afterwards to say so.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn writes_port(&mut self, port: u16, value: u8) -> anyhow::Result<()> {
        self.done(&Task::Out { port, value }).map(drop)
    }

    /// Writes four bytes to a port, and is there afterwards to say so.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn writes_wide_port(&mut self, port: u16, value: u32) -> anyhow::Result<()> {
        self.done(&Task::OutWide { port, value }).map(drop)
    }

    /// Writes a byte to a port that resets the machine; it comes up again.
    ///
    /// # Errors
    /// A guest that does not.
    pub fn resets_by_port(&mut self, port: u16, value: u8) -> anyhow::Result<()> {
        self.input.write_all(&Task::Out { port, value }.encode())?;
        self.comes_up().map(drop)
    }

    /// Crashes beyond its own repair; it comes up again.
    ///
    /// # Errors
    /// A guest that does not.
    pub fn triple_faults(&mut self) -> anyhow::Result<()> {
        self.input.write_all(&Task::TripleFault.encode())?;
        self.comes_up().map(drop)
    }

    /// The machine's statistics of this moment.
    ///
    /// # Errors
    /// An `umbra` that does not give them.
    pub fn statistics(&mut self) -> anyhow::Result<Statistics> {
        self.events.statistics_after(self.deadline, || self.umbra.signal(Signal::USR1))
    }

    /// The VMM's shared memory, seen from outside.
    ///
    /// # Errors
    /// None to be found.
    pub fn shared_memory(&self) -> anyhow::Result<SharedMemoryFile> {
        SharedMemoryFile::of(self.umbra.pid())
    }

    /// Switches itself off.
    ///
    /// # Errors
    /// An `umbra` that goes on.
    pub fn powers_off(mut self) -> anyhow::Result<Ending> {
        let value = SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT;
        self.input.write_all(&Task::Out { port: SLEEP_CONTROL_PORT, value }.encode())?;
        self.ends()
    }

    /// The operator ends it.
    ///
    /// # Errors
    /// An `umbra` that goes on.
    pub fn is_terminated(mut self) -> anyhow::Result<Ending> {
        self.umbra.signal(Signal::TERM)?;
        self.ends()
    }

    /// Waits for the end.
    fn ends(&mut self) -> anyhow::Result<Ending> {
        let status = self.umbra.wait_before(self.deadline)?;
        Ok(Ending { status, statistics: self.events.last_statistics()?, stderr: self.umbra.stderr() })
    }
}
