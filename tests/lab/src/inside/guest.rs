//! One virtual machine of the demonstration: an `umbra` process, its guest's console, and its events.
//!
//! Every wait has a limit, and the process group of `umbra` is killed when a [`Guest`] is dropped. If something goes
//! wrong, the error ends with the last lines of the guest's console and of umbra's standard error.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::console::Follower;
use super::events::EventFile;
use super::search::Findings;
use super::watch::Watch;
use super::{markers, smaps};
use crate::demo::figures::{MemoryStats, VmFigures};
use crate::process::Family;

/// How often a state is asked for that nothing announces.
const POLL: Duration = Duration::from_millis(10);
/// How often it is looked whether a silent guest is still the same.
const CHECK: Duration = Duration::from_secs(1);

/// What makes the guest's RAM unmappable, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// `isolation=software`.
    Software,
    /// `isolation=none`.
    None,
}

impl Isolation {
    /// Its name on umbra's command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::None => "none",
        }
    }
}

/// What to boot.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// The umbra program
    #[arg(long)]
    pub umbra: PathBuf,
    /// The guest's kernel
    #[arg(long)]
    pub kernel: PathBuf,
    /// The guest's initramfs
    #[arg(long)]
    pub initramfs: PathBuf,
    /// Size of the guest's RAM
    #[arg(long)]
    pub memory: String,
    /// The output folder
    #[arg(long)]
    pub folder: PathBuf,
    /// Show all that the guest's kernel says
    #[arg(long)]
    pub show_console: bool,
}

/// How long each step may take. A guest of a nested host that is itself emulated is slow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start of umbra to the guest's init.
    pub boot: Duration,
    /// From there to the canary.
    pub canary: Duration,
    /// From asking for statistics to having them.
    pub statistics: Duration,
    /// The search.
    pub search: Duration,
    /// From telling the guest to power off to the end of umbra.
    pub power_off: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(120),
            canary: Duration::from_secs(60),
            statistics: Duration::from_secs(30),
            search: Duration::from_secs(180),
            power_off: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.boot + self.canary + self.statistics + self.search + self.power_off
    }
}

impl Plan {
    /// The command that boots this guest.
    pub fn command(&self, isolation: Isolation, seed: &str) -> Command {
        // Kernel messages would make the guest slower and could cut a marker in two.
        let quiet = if self.show_console { "" } else { "quiet " };
        let seed_parameter = markers::SEED_PARAMETER;
        let unmappable = match isolation {
            Isolation::Software => "on",
            Isolation::None => "off",
        };
        let mut command = Command::new(&self.umbra);
        command.arg("run");
        command.arg("--kernel").arg(&self.kernel);
        command.arg("--initramfs").arg(&self.initramfs);
        command.arg("--cmdline").arg(format!("console=ttyS0 {quiet}panic=-1 {seed_parameter}{seed}"));
        command.arg("--memory").arg(format!("size={},unmappable={unmappable}", self.memory));
        command.args(["--cpus", "boot=1", "--serial", "tty"]);
        command.arg("--platform").arg(format!("isolation={}", isolation.name()));
        command
    }

    /// Boots the guest, has the canary planted and searched for, powers the guest off, and returns what was measured.
    pub fn demonstrate(&self, isolation: Isolation, limits: &Limits, searcher: &Searcher) -> Result<VmFigures> {
        let seed = new_seed()?;
        let mut guest = Guest::start(self, isolation, &seed)?;
        match guest.demonstrate(&seed, limits, searcher) {
            Ok(figures) => Ok(figures),
            Err(error) => {
                Err(guest.explain(error.context(format!("with isolation={}", isolation.name())), self.show_console))
            }
        }
    }
}

/// A seed that nobody has seen before.
pub fn new_seed() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How to start the search program, up to its options.
#[derive(Clone, Debug)]
pub struct Searcher(pub Vec<OsString>);

impl Searcher {
    /// This program's own command `inside search`.
    pub fn own() -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own path")?;
        Ok(Self(vec![program.into(), "inside".into(), "search".into()]))
    }

    /// Searches process `pid` for the canary made of `seed`.
    pub fn search(&self, pid: u32, seed: &str, limit: Duration) -> Result<Findings> {
        let [program, arguments @ ..] = self.0.as_slice() else { bail!("there is no search program") };
        let findings = tempfile::tempfile().context("cannot make a temporary file")?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--pid").arg(pid.to_string()).arg("--seed").arg(seed);
        command.stdin(Stdio::null()).stdout(findings.try_clone().context("cannot duplicate a descriptor")?);
        let mut search = Family::start(&mut command, Vec::new()).context("cannot start the search program")?;
        let status = wait(&mut search, limit, || Ok(()))?
            .with_context(|| format!("the search took longer than {} s", limit.as_secs()))?;
        ensure!(status.success(), "the search failed ({status})");
        let mut findings = findings;
        std::io::Seek::rewind(&mut findings).context("cannot read the findings")?;
        serde_json::from_reader(findings).context("cannot read the findings")
    }
}

/// Waits for `family` to end, at most for `limit`, and as long as `check` finds nothing wrong.
fn wait(family: &mut Family, limit: Duration, check: impl Fn() -> Result<()>) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = family.try_wait().context("cannot wait for a process")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        check()?;
        std::thread::sleep(POLL);
    }
}

/// A running virtual machine.
pub struct Guest {
    vmm: Family,
    /// When `umbra` was started.
    pub started: Instant,
    keyboard: ChildStdin,
    console: Follower,
    errors: Follower,
    events: EventFile,
}

impl Guest {
    fn start(plan: &Plan, isolation: Isolation, seed: &str) -> Result<Self> {
        let events = plan.folder.join(format!("events-{}", isolation.name()));
        Self::launch(plan.command(isolation, seed), events, plan.show_console)
    }

    /// Starts `umbra` by this command, with an event monitor at `events`.
    pub fn launch(mut command: Command, events: PathBuf, show_console: bool) -> Result<Self> {
        let events = EventFile::create(events)?;
        let mut monitor = OsString::from("path=");
        monitor.push(events.path());
        command.arg("--event-monitor").arg(monitor);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut vmm = Family::start(&mut command, Vec::new())
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let child = vmm.child();
        let keyboard = child.stdin.take().context("umbra has no standard input")?;
        let console = child.stdout.take().context("umbra has no standard output")?;
        let errors = child.stderr.take().context("umbra has no standard error")?;
        let console = Follower::start(console, show_console)?;
        let errors = Follower::start(errors, show_console)?;
        Ok(Self { vmm, started, keyboard, console, errors, events })
    }

    fn demonstrate(&mut self, seed: &str, limits: &Limits, searcher: &Searcher) -> Result<VmFigures> {
        let init = self.wait_for(markers::INIT, limits.boot)?;
        self.wait_for(markers::CANARY_IN_PLACE, limits.canary)?;
        let pid = self.pid();
        // The search makes the kernel map more of the VMM's memory: measure before it.
        let vmm_rss_bytes = smaps::own_memory(pid)?;
        let memory = self.statistics(limits.statistics)?;
        let search = searcher.search(pid, seed, limits.search)?;
        self.power_off(limits.power_off)?;
        let time_to_init_ms = u64::try_from(init.duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        Ok(VmFigures { memory, time_to_init_ms, vmm_rss_bytes, search })
    }

    /// The number of the process.
    pub fn pid(&mut self) -> u32 {
        self.vmm.child().id()
    }

    /// The folder in which its events are.
    pub fn folder(&self) -> &Path {
        self.events.path().parent().unwrap_or(Path::new("."))
    }

    /// What knows whether it is still the guest that was booted.
    pub fn watch(&self) -> Watch {
        Watch::new(self.events.clone())
    }

    /// An error if `umbra` has ended, or its guest is another one.
    pub fn check(&mut self) -> Result<()> {
        match self.vmm.try_wait().context("cannot wait for umbra")? {
            Some(status) => bail!("umbra ended ({status})"),
            None => self.watch().check(),
        }
    }

    /// Waits for `umbra` to end, at most for `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let watch = self.watch();
        wait(&mut self.vmm, limit, || watch.check())
    }

    /// Waits until the guest says `marker`, the next one that it should say; returns when that was.
    pub fn wait_for(&mut self, marker: &str, limit: Duration) -> Result<Instant> {
        let (deadline, watch) = (Instant::now() + limit, self.watch());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.console.markers().recv_timeout(left.min(CHECK)) {
                Ok(said) if said.text == marker => return Ok(said.at),
                Ok(said) => {
                    watch.check()?;
                    bail!("the guest said {:?} instead of {marker:?}", said.text)
                }
                Err(RecvTimeoutError::Timeout) if left > CHECK => watch.check()?,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest did not say {marker:?} within {} s", limit.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => match wait(&mut self.vmm, Duration::from_secs(5), || Ok(()))? {
                    Some(status) => bail!("umbra ended ({status}) before the guest said {marker:?}"),
                    None => bail!("umbra closed its console before the guest said {marker:?}"),
                },
            }
        }
    }

    /// Asks umbra for its account of the guest's memory.
    fn statistics(&mut self, limit: Duration) -> Result<MemoryStats> {
        let before = self.events.memory_stats()?.len();
        kill_process(Pid::from_child(self.vmm.child()), Signal::USR1).context("cannot ask umbra for statistics")?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(stats) = self.events.memory_stats()?.get(before) {
                return Ok(*stats);
            }
            if let Some(status) = self.vmm.try_wait().context("cannot wait for umbra")? {
                bail!("umbra ended ({status}) when it was asked for statistics");
            }
            ensure!(Instant::now() < deadline, "umbra gave no statistics within {} s", limit.as_secs());
            std::thread::sleep(POLL);
        }
    }

    /// Types at the guest's shell, and expects that umbra ends with status 0.
    fn power_off(&mut self, limit: Duration) -> Result<()> {
        self.keyboard
            .write_all(b"exit\n")
            .and_then(|()| self.keyboard.flush())
            .context("cannot type at the guest's console")?;
        self.wait_for(markers::SHELL_ENDED, limit).context("the guest's shell did not do as it was told")?;
        match self.wait_for_end(limit)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("umbra ended with {status} when the guest powered off"),
            None => bail!("umbra did not end within {} s after the guest powered off", limit.as_secs()),
        }
    }

    /// Ends umbra; adds to the error the end of what the guest and it said, and what became of the guest.
    pub fn explain(mut self, error: Error, all_shown: bool) -> Error {
        self.vmm.kill();
        let watch = self.watch();
        let (console, errors) = (self.console.end(), self.errors.end());
        let said = [("the guest's console", console.last_lines), ("umbra's standard error", errors.last_lines)];
        let words = if all_shown { String::new() } else { last_words(said) };
        watch.explain(anyhow!("{error:#}{words}"), console.stalled)
    }
}

fn last_words(said: [(&str, VecDeque<String>); 2]) -> String {
    let mut words = String::new();
    for (who, lines) in said.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        words.push_str(&format!("\n--- end of {who} ---\n{}", Vec::from(lines).join("\n")));
    }
    words + "\n--- `cargo lab demo --verbose` shows all that the guest's kernel says ---"
}

#[cfg(test)]
mod tests;
