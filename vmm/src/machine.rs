//! The machine: built from a configuration, run until it stops.
//!
//! [`Machine::build`] checks everything that can be checked (files, sizes, what the host offers) before it creates
//! anything. [`Machine::run`] starts the vCPU and the console and waits for the first reason to stop. A reset ends the
//! machine like a power-off does; whoever wants a reboot builds a new one, so that nothing of the old guest is left.

use std::fs::File;
use std::io::Read;
use std::os::unix::thread::JoinHandleExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use arch::x86_64::image::KernelImage;
use arch::x86_64::map::SERIAL_GSI;
use arch::x86_64::{Isolation, MemoryLayout, cpuid, launch, msr};
use hypervisor::{Hypervisor, Vcpu, Vm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::config::{SerialConfig, VmConfig};
use crate::console::{self, Output, RawTerminal};
use crate::devices::Devices;
use crate::devices::serial::SerialDevice;
use crate::events::{self, EventMonitor};
use crate::memory::{GuestRam, MemoryStatistics, RamOptions};
use crate::vcpu::{self, VcpuContext};
use crate::{Error, Result};

/// Machines have one processor so far.
const PROCESSORS: u8 = 1;

/// The most bytes that a kernel file may have: far more than Linux has, debugging information and all.
const MAX_KERNEL_FILE: u64 = 2 << 30;

/// How long to wait for a vCPU to notice that it shall stop before it is told again.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// Why a machine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The guest switched it off.
    PowerOff,
    /// The guest reset it, or crashed so badly that a PC would.
    Reset,
    /// The operator ended it.
    Requested,
}

/// A machine that is ready to run.
pub struct Machine {
    isolation: Isolation,
    vcpu: Box<dyn Vcpu>,
    launching: bool,
    shared: Shared,
    serial: SerialConfig,
    // Held so that the VM lives as long as the machine.
    _vm: Arc<dyn Vm>,
}

/// What threads share.
#[derive(Clone)]
struct Shared {
    ram: Arc<GuestRam>,
    devices: Arc<Devices>,
    stop: Arc<AtomicBool>,
}

/// Ends a machine, or looks into it, from any thread.
#[derive(Clone)]
pub struct MachineHandle {
    shared: Shared,
    stops: mpsc::Sender<Result<Stop>>,
}

impl MachineHandle {
    /// Ends the machine.
    pub fn stop(&self) {
        // A machine that has stopped listens no more.
        let _ = self.stops.send(Ok(Stop::Requested));
    }

    /// Ends the machine, to be built anew.
    pub fn reset(&self) {
        let _ = self.stops.send(Ok(Stop::Reset));
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.shared.ram
    }

    /// Figures about its memory.
    pub fn memory_statistics(&self) -> MemoryStatistics {
        self.shared.ram.statistics()
    }
}

impl Machine {
    /// Builds a machine.
    ///
    /// # Errors
    /// Bad files or sizes, a host that can't do what was asked for, or a hypervisor that fails.
    pub fn build(
        hypervisor: &dyn Hypervisor,
        config: &VmConfig,
        output: &Output,
        events: &Arc<EventMonitor>,
    ) -> Result<Self> {
        let isolation = config.resolve_isolation(hypervisor.caps())?;
        let supported = hypervisor.supported_cpuid()?;
        let layout = MemoryLayout::new(isolation, config.memory.size, cpuid::address_bits(&supported))?
            .reserving(config.memory.window)?;
        let kernel = read(&config.kernel, "kernel", MAX_KERNEL_FILE)?;
        let kernel =
            KernelImage::parse(&kernel).map_err(|source| Error::Kernel { path: config.kernel.clone(), source })?;
        let initramfs =
            config.initramfs.as_deref().map_or(Ok(Vec::new()), |path| read(path, "initramfs", layout.size()))?;
        let launch = launch::plan(&layout, &kernel, &initramfs, &config.command_line, PROCESSORS)?;

        let vm = hypervisor.create_vm(isolation.vm_type())?;
        vm.create_irqchip()?;
        if layout.converts() {
            vm.exit_on_map_gpa_range()?;
        }
        let filter = msr::filter(isolation);
        if !filter.is_empty() {
            vm.filter_msrs(filter)?;
        }
        let leaves = cpuid::for_processor(&supported, &layout, 0, PROCESSORS);
        let options = RamOptions {
            policy: config.conversions,
            observer: events::memory_observer(events.clone()),
            ..RamOptions::default()
        };
        let ram = GuestRam::new(vm.clone(), layout, options)?;
        for blob in &launch.blobs {
            ram.write(blob.gpa, &blob.data)?;
        }
        let line = EventFd::new(EFD_NONBLOCK).map_err(Error::system("create an interrupt line"))?;
        vm.register_irqfd(&line, SERIAL_GSI)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid(&leaves)?;
        set_up_boot_processor(&*vcpu, &launch)?;
        // Last, since it may create a file: whatever fails before leaves none behind.
        let stop = Arc::new(AtomicBool::new(false));
        let devices = Devices { serial: SerialDevice::new(line, output.writer(stop.clone())?) };
        let shared = Shared { ram: Arc::new(ram), devices: Arc::new(devices), stop };
        Ok(Self { isolation, vcpu, launching: launch.announces, shared, serial: config.serial.clone(), _vm: vm })
    }

    /// What makes its memory unmappable.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Runs until the guest or the operator ends it; `started` gets the handle for the latter.
    ///
    /// # Errors
    /// A vCPU that can't go on.
    pub fn run(self, events: &EventMonitor, started: impl FnOnce(MachineHandle)) -> Result<Stop> {
        let (stops, stopped) = mpsc::channel();
        let handle = MachineHandle { shared: self.shared.clone(), stops: stops.clone() };
        let terminal = match self.serial {
            SerialConfig::Tty => Some(RawTerminal::enter().map_err(Error::system("make the terminal raw"))?),
            _ => None,
        };
        register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|errno| Error::system("handle the signal that interrupts vCPUs")(errno.into()))?;
        let context = VcpuContext {
            id: 0,
            ram: self.shared.ram.clone(),
            devices: self.shared.devices.clone(),
            stop: self.shared.stop.clone(),
            launching: self.launching,
        };
        // Before the guest runs, so that whoever sees a sign of it can reach the machine.
        events.emit("vm", "booted", ());
        started(handle);
        let (vcpu, vcpu_stops) = (self.vcpu, stops.clone());
        let thread = spawn("vcpu0", move || {
            let id = context.id;
            // A panic is a bug, and must end the machine with an error like any other.
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| vcpu::run(vcpu, context)))
                .unwrap_or_else(|_| Err(Error::Vcpu { id, rip: 0, reason: "its thread panicked".into() }));
            let _ = match result {
                Ok(Some(stop)) => vcpu_stops.send(Ok(stop)),
                Ok(None) => Ok(()),
                Err(error) => vcpu_stops.send(Err(error)),
            };
        })?;
        let input = match &terminal {
            Some(terminal) => {
                let (shared, escapes) = (self.shared.clone(), terminal.is_terminal());
                let input = move || {
                    let quit = || drop(stops.send(Ok(Stop::Requested)));
                    console::carry_input(&shared.devices, &shared.stop, escapes, quit);
                };
                Some(spawn("console", input)?)
            }
            None => None,
        };

        // The vCPU's thread sends why it ends, or somebody asks for the end.
        let result = stopped.recv().unwrap_or(Ok(Stop::Requested));
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ram.end_conversions();
        kick_until_finished(&thread);
        let _ = thread.join();
        if let Some(input) = input {
            let _ = input.join();
        }
        drop(terminal);
        events.emit("memory", "stats", self.shared.ram.statistics());
        events.emit("vm", if matches!(result, Ok(Stop::Reset)) { "rebooting" } else { "shutdown" }, ());
        result
    }
}

/// Reads a file of at most `limit` bytes. Devices and pipes may have no end, and files may be larger than memory.
fn read(path: &Path, role: &'static str, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::File { operation: "read", role, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    if size <= limit {
        bytes.try_reserve_exact(size as usize).map_err(|error| failed(error.into()))?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if size.max(bytes.len() as u64) > limit {
        return Err(Error::FileTooLarge { role, path: path.to_owned(), limit });
    }
    Ok(bytes)
}

fn set_up_boot_processor(vcpu: &dyn Vcpu, launch: &launch::Launch<'_>) -> Result<()> {
    /// Local APIC on, and in x2APIC mode (AMD's manual volume 2, 16.9). It must be on first.
    const APIC_ENABLE: u64 = 1 << 11;
    const APIC_X2: u64 = 1 << 10;
    let mut special = vcpu.special_registers()?;
    special.apic_base |= APIC_ENABLE;
    vcpu.set_special_registers(&special)?;
    special.apic_base |= APIC_X2;
    launch.set_special_registers(&mut special);
    vcpu.set_special_registers(&special)?;
    vcpu.set_registers(&launch.registers)?;
    let (index, value) = msr::MTRR_DEFAULT;
    vcpu.set_msr(index, value)?;
    Ok(())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(body).map_err(Error::system("start a thread"))
}

/// Interrupts a vCPU until it has seen that it shall stop. Told once, it could miss it between its look at the flag and
/// its entry into the guest.
fn kick_until_finished(thread: &JoinHandle<()>) {
    while !thread.is_finished() {
        kick(thread);
        std::thread::sleep(KICK_INTERVAL);
    }
}

fn kick(thread: &JoinHandle<()>) {
    use vmm_sys_util::signal::Killable;
    if let Err(error) = thread.kill(SIGRTMIN()) {
        tracing::warn!("cannot interrupt vCPU thread {:#x}: {error}", thread.as_pthread_t());
    }
}

/// The signal's only purpose is to interrupt KVM_RUN.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
