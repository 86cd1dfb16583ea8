//! `umbra run`: boot a guest and run it until it powers off.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use hypervisor::kvm::KvmHypervisor;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use vmm::config::{ConsoleConfig, CpusConfig, MemoryConfig, SerialConfig, VmConfig};
use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::machine::MachineHandle;
use vmm::memory::conversion::Policy;
use vmm::{Machine, Stop};

use crate::new_file::NewFile;
use crate::options::{self, Platform};

/// Boot a Linux kernel and run it until it powers off.
#[derive(clap::Args)]
#[command(after_help = "\
On a terminal, Ctrl-A x ends the machine, and Ctrl-A Ctrl-A sends one Ctrl-A.
Signals: TERM, INT and HUP end the machine; USR1 writes its memory statistics to the event monitor.

Example:
  umbra run --kernel /boot/vmlinuz --initramfs initramfs.cpio --cmdline 'console=ttyS0' \\
      --memory size=512M,unmappable=on")]
pub struct Args {
    /// The kernel: an x86-64 Linux vmlinuz (bzImage) or vmlinux.
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// The initramfs.
    #[arg(long, value_name = "PATH")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    cmdline: String,
    /// Memory: its size, and whether no process on the host may be able to map it.
    #[arg(long, value_name = "size=SIZE[,unmappable=on|off]", default_value = "size=512M", value_parser = options::memory)]
    memory: MemoryConfig,
    /// Processors.
    #[arg(long, value_name = "boot=N", default_value = "boot=1", value_parser = options::cpus)]
    cpus: CpusConfig,
    /// Where the serial console goes.
    #[arg(long, value_name = "tty|file=PATH|null", default_value = "tty", value_parser = options::serial)]
    serial: SerialConfig,
    /// What makes memory unmappable; auto is the strongest that this host offers with unmappable=on, and none without.
    #[arg(
        long,
        value_name = "isolation=auto|none|software",
        default_value = "isolation=auto",
        value_parser = options::platform
    )]
    platform: Platform,
    /// What conversions of guest memory may do, by what asks for them: an announcement of the guest's (explicit), an access
    /// that contradicts a page's state (implicit), the operator (host). N/s allows N each second, and lets the rest wait.
    #[arg(
        long,
        value_name = "[explicit|implicit|host]=allow|refuse|N/s,...",
        default_value = "explicit=allow,implicit=allow,host=allow",
        value_parser = options::conversions
    )]
    conversions: Policy,
    /// Write what happens to the machine as JSON objects, in Cloud Hypervisor's format.
    #[arg(long, value_name = "path=PATH", value_parser = options::event_monitor)]
    event_monitor: Option<PathBuf>,
}

/// The machine that runs at the moment, for the thread that handles signals.
#[derive(Clone, Default)]
struct Current(Arc<Mutex<(Option<MachineHandle>, bool)>>);

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = VmConfig {
        kernel: args.kernel.clone(),
        initramfs: args.initramfs.clone(),
        command_line: args.cmdline.clone(),
        memory: args.memory.clone(),
        isolation: args.platform.isolation,
        conversions: args.conversions,
        serial: args.serial.clone(),
        cpus: args.cpus,
        console: ConsoleConfig::Off,
        rng: None,
        disks: Vec::new(),
        nets: Vec::new(),
        vsock: None,
        balloon: None,
    };
    // Caught from here on, acted upon once there is a machine.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("cannot handle signals")?;
    let hypervisor = KvmHypervisor::open()?;
    let output = Output::new(config.serial.clone());
    let cannot_create = |path: &PathBuf| format!("cannot create event monitor {}", path.display());
    let file = match &args.event_monitor {
        Some(path) => Some((path, NewFile::open(path).with_context(|| cannot_create(path))?)),
        None => None,
    };
    let events = Arc::new(EventMonitor::new());
    let mut machine = Machine::build(&hypervisor, &config, &output, &events)?;
    if let Some((path, file)) = file {
        events.write_to(file.keep().with_context(|| cannot_create(path))?);
    }
    let current = Current::default();
    handle_signals(signals, &current, &events)?;
    loop {
        tracing::info!("running with isolation={}", machine.isolation());
        let stop = machine.run(&events, |handle| current.set(handle))?;
        // The handle holds the old guest's memory.
        current.clear();
        match stop {
            Stop::Reset if !current.is_ending() => {
                tracing::info!("the guest reset the machine: booting it anew");
                machine = Machine::build(&hypervisor, &config, &output, &events)?;
            }
            _ => return Ok(ExitCode::SUCCESS),
        }
    }
}

impl Current {
    fn set(&self, handle: MachineHandle) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A signal may have come before there was a machine to end.
        if state.1 {
            handle.stop();
        }
        state.0 = Some(handle);
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = None;
    }

    fn end(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = true;
        if let Some(handle) = &state.0 {
            handle.stop();
        }
    }

    fn is_ending(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn get(&self) -> Option<MachineHandle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

fn handle_signals(mut signals: Signals, current: &Current, events: &Arc<EventMonitor>) -> anyhow::Result<()> {
    let (current, events) = (current.clone(), events.clone());
    let body = move || {
        for signal in signals.forever() {
            match (signal, current.get()) {
                (SIGUSR1, Some(handle)) => events.emit("memory", "stats", handle.memory_statistics()),
                (SIGUSR1, None) => {}
                _ => current.end(),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(body).context("cannot start a thread")?;
    Ok(())
}
