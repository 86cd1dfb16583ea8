//! A virtio device of one's own on the bus of a machine: an entropy device (virtio 1.3, 5.4) whose numbers can be foretold.
//!
//! `cargo run -p vmm --example virtio_device -- KERNEL [INITRAMFS] [unmappable]`. The guest's serial port is standard output, its
//! command line `console=ttyS0`. Linux finds the device as virtio-rng, and reads 1, 2, 3 and so on from `/dev/hwrng`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::kvm::KvmHypervisor;
use rustix::event::epoll::EventFlags;
use vmm::Machine;
use vmm::config::{MemoryConfig, SerialConfig, VmConfig};
use vmm::console::Output;
use vmm::devices::virtio::counter::Counter;
use vmm::devices::virtio::ring::Ring;
use vmm::devices::virtio::worker::{Service, Sources, Workers};
use vmm::devices::virtio::{ActivateError, Activation, VirtioDevice};
use vmm::events::EventMonitor;
use vmm::memory::guarded::DeviceView;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The most bytes that one request gets.
const MOST: u32 = 4096;

/// The device. What the guest and the manager of devices see of it.
#[derive(Default)]
pub struct Foretold {
    bytes: Arc<Counter>,
    faults: Arc<Counter>,
    /// Its threads: paused, resumed and ended with the machine.
    workers: Workers,
}

/// What its thread works with: a queue, and a view of guest memory.
struct Numbers {
    ring: Ring,
    view: DeviceView,
    next: u8,
    bytes: Arc<Counter>,
}

impl VirtioDevice for Foretold {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> std::result::Result<(), ActivateError> {
        let mut start = || {
            let ring = activation.take_ring(0, &self.faults)?;
            let (view, bytes) = (activation.memory.view("foretold"), self.bytes.clone());
            self.workers.start("foretold", Numbers { ring, view, next: 1, bytes }, |numbers, sources| {
                sources.add(numbers.ring.notified(), 0, EventFlags::IN)
            })
        };
        start().map_err(|source| ActivateError { operation: "start the thread of numbers", source })
    }

    fn deactivate(&mut self) {
        self.workers.end();
    }

    fn workers(&self) -> &Workers {
        &self.workers
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("bytes", self.bytes.get()), ("queue_faults", self.faults.get())]
    }
}

impl Service for Numbers {
    fn ready(&mut self, _: u64, sources: &Sources) -> ControlFlow<()> {
        let Self { ring, view, next, bytes } = self;
        ring.serve(view, sources, |mut chain| {
            // A request that names private memory gets nothing. What is guarded stays shared until the guard is dropped.
            let Ok(mut buffers) = chain.writable.take_first(MOST).guard(view) else { return 0 };
            let numbers: Vec<u8> = (0..buffers.size()).map(|i| next.wrapping_add(i as u8)).collect();
            *next = next.wrapping_add(numbers.len() as u8);
            let written = buffers.copy_in(&numbers);
            bytes.add(written as u64);
            written as u32
        });
        ControlFlow::Continue(())
    }
}

/// Runs the machine of the command line.
pub fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let unmappable = arguments.pop_if(|last| last == "unmappable").is_some();
    let mut paths = arguments.into_iter().map(PathBuf::from);
    let kernel = paths.next().ok_or("usage: virtio_device KERNEL [INITRAMFS] [unmappable]")?;
    let config = VmConfig {
        initramfs: paths.next(),
        command_line: "console=ttyS0".into(),
        memory: MemoryConfig { size: 256 << 20, unmappable: Some(unmappable), ..MemoryConfig::default() },
        serial: SerialConfig::Tty,
        // The only one shall be ours.
        rng: None,
        ..VmConfig::new(kernel)
    };
    let events = Arc::new(EventMonitor::new());
    let machine = Machine::build(&KvmHypervisor::open()?, &config, &Output::new(config.serial.clone()), &events)?;
    let mut added = Ok(None);
    // The guest does not run yet, and finds it when it boots. From other threads, devices come and go at any time.
    let stop = machine.run(&events, |handle| {
        added = handle.devices().add("foretold", None, Box::new(Foretold::default())).map(Some);
    })?;
    println!("it ended: {stop:?}; the device was {:?}", added?);
    Ok(())
}
