//! A whole machine from code, with a device of one's own: a doorbell, at which the guest says where in its memory something is.
//!
//! `cargo run -p vmm --example machine -- KERNEL [INITRAMFS] [unmappable]`. The guest's serial port is standard output, its command
//! line `console=ttyS0`. It rings by writing an address to port 0x510, and reads there whether the doorbell could look.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hypervisor::kvm::KvmHypervisor;
use vm_memory::GuestAddress;
use vmm::config::{MemoryConfig, SerialConfig, VmConfig};
use vmm::console::Output;
use vmm::devices::custom::CustomDevice;
use vmm::events::EventMonitor;
use vmm::memory::guarded::DeviceView;
use vmm::{Machine, Stop};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The doorbell's ports.
const PORTS: std::ops::RangeInclusive<u16> = 0x510..=0x513;

/// Sees the guest's memory through its view only: no private page, and no page on its way to private.
pub struct Doorbell {
    view: DeviceView,
    /// What it found the last time; all ones for nothing.
    found: Arc<AtomicU64>,
}

impl CustomDevice for Doorbell {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        let found = self.found.load(Ordering::Relaxed) != u64::MAX;
        data.fill(u8::from(found));
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        let Ok(address) = data.try_into().map(u32::from_le_bytes) else { return };
        let found = self.view.read_obj::<u32>(GuestAddress(address.into()));
        match &found {
            Ok(word) => println!("the guest rings about {address:#x}: there is {word:#x}"),
            Err(error) => println!("the guest rings about {address:#x}: {error}"),
        }
        self.found.store(found.map_or(u64::MAX, u64::from), Ordering::Relaxed);
    }
}

/// Runs the machine of the command line.
pub fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let unmappable = arguments.pop_if(|last| last == "unmappable").is_some();
    let mut paths = arguments.into_iter().map(PathBuf::from);
    let kernel = paths.next().ok_or("usage: machine KERNEL [INITRAMFS] [unmappable]")?;
    let config = VmConfig { initramfs: paths.next(), serial: SerialConfig::Tty, ..config(&kernel, unmappable) };
    run(&config).map(|(stop, _)| println!("it ended: {stop:?}"))
}

/// A machine that boots this kernel.
pub fn config(kernel: &Path, unmappable: bool) -> VmConfig {
    VmConfig {
        command_line: "console=ttyS0".into(),
        // Unmappable, or an error that says what this host lacks for it.
        memory: MemoryConfig { size: 256 << 20, unmappable: Some(unmappable), ..MemoryConfig::default() },
        ..VmConfig::new(kernel)
    }
}

/// Runs a machine until it ends, and says why it did and what the doorbell found last.
pub fn run(config: &VmConfig) -> Result<(Stop, Option<u32>)> {
    let hypervisor = KvmHypervisor::open()?;
    let events = Arc::new(EventMonitor::new());
    let mut machine = Machine::build(&hypervisor, config, &Output::new(config.serial.clone()), &events)?;
    let view = machine.memory().devices().view("doorbell");
    let found = Arc::new(AtomicU64::new(u64::MAX));
    machine.add_port_device(PORTS, Box::new(Doorbell { view, found: found.clone() }))?;
    println!("it runs with isolation={}", machine.isolation());
    // The handle steers it from other threads: pause, resume, reset, power button, devices that come and go, the end.
    let stop = machine.run(&events, |_handle| {})?;
    Ok((stop, u32::try_from(found.load(Ordering::Relaxed)).ok()))
}
