//! A machine in this process, with all of its processors at work.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use hypervisor::kvm::KvmHypervisor;
use kvm_tests::requirement::{require, require_caps};
use kvm_tests::swarm;
use tempfile::TempDir;
use vmm::config::{ConsoleConfig, CpusConfig, MemoryConfig, SerialConfig, VmConfig};
use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::machine::MachineHandle;
use vmm::memory::conversion::Policy;
use vmm::{Machine, Stop};

/// How long anything may take. Nothing should take seconds, unless much else runs.
const LIMIT: Duration = Duration::from_secs(100);

/// One machine at a time: a test counts what this process has open.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until no other test has a machine.
fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What machines are built of.
pub struct Bed {
    hypervisor: KvmHypervisor,
    config: VmConfig,
    events: Arc<EventMonitor>,
    screen: PathBuf,
    _folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// A machine that runs, as a test sees it.
pub struct Running<'a> {
    /// Steers it.
    pub handle: &'a MachineHandle,
    screen: &'a PathBuf,
    /// Whether it has ended.
    over: &'a AtomicBool,
}

impl Bed {
    /// For machines of so many processors.
    pub fn new(isolation: Isolation, processors: u8) -> anyhow::Result<Self> {
        let alone = alone();
        let hypervisor = require_caps(&[])?;
        require(hypervisor.caps(), isolation.requirements())?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let (kernel, screen) = (folder.path().join("kernel"), folder.path().join("screen"));
        std::fs::write(&kernel, swarm::vmlinux())?;
        let config = VmConfig {
            kernel,
            initramfs: None,
            command_line: processors.to_string(),
            memory: MemoryConfig { size: 64 << 20, unmappable: None, window: 0 },
            isolation: Some(isolation),
            access_platform: None,
            conversions: Policy::default(),
            serial: SerialConfig::File(screen.clone()),
            cpus: CpusConfig { boot: processors },
            console: ConsoleConfig::Off,
            rng: None,
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            balloon: None,
        };
        let events = Arc::new(EventMonitor::new());
        Ok(Self { hypervisor, config, events, screen, _folder: folder, _alone: alone })
    }

    /// With a guest that starts its processors by INIT and SIPI, whatever it is told.
    pub fn knowing_no_mailbox(mut self) -> Self {
        self.config.command_line.push('i');
        self
    }

    /// Runs a machine and a test of it. Returns why the machine ended; it is ended after the test, if it has not.
    pub fn run(&self, test: impl FnOnce(&Running<'_>) -> anyhow::Result<()>) -> anyhow::Result<Stop> {
        let output = Output::new(self.config.serial.clone());
        let machine = Machine::build(&self.hypervisor, &self.config, &output, &self.events)?;
        let (sender, receiver) = mpsc::channel();
        let over = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (events, (done, ended)) = (&self.events, mpsc::channel());
            scope.spawn(move || {
                let result = machine.run(events, |handle| drop(sender.send(handle)));
                over.store(true, Ordering::Release);
                let _ = done.send(result);
            });
            let handle = receiver.recv_timeout(LIMIT).context("the machine does not start")?;
            let result = test(&Running { handle: &handle, screen: &self.screen, over });
            let by_itself = over.load(Ordering::Acquire);
            handle.stop();
            // Not to be waited for: a scope that has a thread left never ends, and the test's own limit says so.
            let ended = ended.recv_timeout(LIMIT).context("the machine does not end")?;
            match (result, ended.context("the machine ended")) {
                (Err(error), Ok(Stop::TripleFault)) if by_itself => {
                    Err(error.context("the guest crashed (triple fault)"))
                }
                (Err(error), Err(end)) => Err(end.context(format!("{error:#}"))),
                (result, ended) => result.and(ended),
            }
        })
    }
}

impl Running<'_> {
    /// Pauses, which must not wait for anything that may take long.
    pub fn pauses(&self) -> anyhow::Result<()> {
        let (handle, (done, paused)) = (self.handle.clone(), mpsc::channel());
        std::thread::spawn(move || done.send(handle.pause()));
        Ok(paused.recv_timeout(LIMIT).context("the machine does not pause")??)
    }

    /// How often a processor has given its sign.
    pub fn signs_of(&self, processor: u8) -> anyhow::Result<usize> {
        let screen = std::fs::read_to_string(self.screen).context("cannot read the screen")?;
        ensure!(screen.chars().all(|sign| sign.is_ascii_digit()), "noise on the screen: {screen:?}");
        Ok(screen.matches(swarm::sign_of(processor)).count())
    }

    /// Waits until each of so many processors has given so many more signs.
    pub fn works(&self, processors: u8, signs: usize) -> anyhow::Result<()> {
        let before = (0..processors).map(|id| self.signs_of(id)).collect::<anyhow::Result<Vec<_>>>()?;
        until("all processors work", || {
            ensure!(!self.over.load(Ordering::Acquire), "the machine ended while its processors should work");
            for (id, before) in (0..).zip(&before) {
                if self.signs_of(id)? < before + signs {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .with_context(|| self.state(&before))
    }

    /// What tells why processors don't work, after these signs.
    fn state(&self, before: &[usize]) -> String {
        let signs: Vec<_> = (0..).zip(before).map(|(id, before)| (before, self.signs_of(id).ok())).collect();
        let statistics = self.handle.memory_statistics();
        let threads = threads().unwrap_or_else(|error| format!("{error:#}"));
        format!("signs before and now: {signs:?}; {statistics:?}; threads:\n{threads}")
    }
}

/// The threads of this process: for each its name, its state with the ticks that it has run in user space and in the kernel,
/// and where it waits.
fn threads() -> anyhow::Result<String> {
    let mut lines = String::new();
    for task in std::fs::read_dir("/proc/self/task").context("cannot list threads")? {
        let folder = task.context("cannot list threads")?.path();
        // One may end meanwhile.
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let (stat, wait) = (read("stat"), read("wchan"));
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let state = [0, 11, 12].map(|index| fields.get(index).copied().unwrap_or("?")).join(" ");
        lines.push_str(&format!("{}: {state} {wait} {}\n", read("comm").trim(), read("syscall").trim()));
    }
    Ok(lines)
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    while !is_so()? {
        if start.elapsed() > LIMIT {
            bail!("it never comes to this: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
