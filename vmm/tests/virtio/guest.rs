//! A guest's memory on the model, and what a device is activated with.
#![allow(dead_code, reason = "several test programs have it, and none uses all of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::model::ModelHypervisor;
use hypervisor::{Backing, GpaRange, PAGE_SIZE, PageState, SharedMemory, Vm, VmType};
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::virtio::{Activation, Interrupt, VirtioDevice};
use vmm::memory::event::MemoryObserver;
use vmm::memory::guarded::DeviceView;
use vmm::memory::{GuestRam, RamOptions};

use crate::driver::Queue;

/// Bytes of RAM.
const SIZE: u64 = 64 << 20;

/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;

/// A guest's memory.
pub struct Guest {
    pub ram: Arc<GuestRam>,
    shared: Arc<SharedMemory>,
    pub interrupts: Arc<Interrupts>,
    view: DeviceView,
    next: std::cell::Cell<u64>,
}

/// Counts interrupts.
#[derive(Default)]
pub struct Interrupts {
    pub queues: AtomicU64,
    pub config: AtomicU64,
}

impl Interrupt for Interrupts {
    fn queue_used(&self, _: u16) {
        self.queues.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

impl Guest {
    /// Memory that can be converted.
    pub fn new() -> Self {
        Self::with(VmType::SwProtected, MemoryLayout::one_alias(SIZE, 46).unwrap(), RamOptions::default())
    }

    /// As [`Guest::new`], and `observer` is told of events.
    pub fn observed(observer: Arc<MemoryObserver>) -> Self {
        let options = RamOptions { observer, ..RamOptions::default() };
        Self::with(VmType::SwProtected, MemoryLayout::one_alias(SIZE, 46).unwrap(), options)
    }

    /// Memory that is shared for good.
    pub fn plain() -> Self {
        Self::with(VmType::Default, MemoryLayout::new(Isolation::None, SIZE, 46).unwrap(), RamOptions::default())
    }

    fn with(kind: VmType, layout: MemoryLayout, options: RamOptions) -> Self {
        let vm = ModelHypervisor::new().create(kind).unwrap();
        vm.finalise();
        if layout.converts() {
            vm.exit_on_map_gpa_range().unwrap();
        }
        let regions = vm.clone();
        let ram = Arc::new(GuestRam::new(vm, layout, options).unwrap());
        let shared = regions.regions().iter().find_map(|(_, region)| region.shared.as_ref()).unwrap().backing.clone();
        let view = ram.devices().view("driver");
        Self { shared, ram, interrupts: Arc::default(), view, next: std::cell::Cell::new(1 << 20) }
    }

    /// Bytes of host memory behind its shared side.
    pub fn resident(&self) -> u64 {
        let runs = hypervisor::model::allocated(&Backing::Shared(self.shared.clone())).unwrap();
        runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Address of this many pages that nobody uses yet.
    pub fn pages(&self, count: u64) -> u64 {
        let start = self.next.get();
        self.next.set(start + count * PAGE_SIZE);
        assert!(self.next.get() <= SIZE, "out of memory");
        start
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.view.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub fn read(&self, gpa: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.view.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    pub fn convert(&self, gpa: u64, count: u64, to: PageState) {
        let range = GpaRange::new(gpa, count * PAGE_SIZE).unwrap();
        let request = ConversionRequest { range, to, kind: ConversionKind::Host, origin: Origin::Host };
        self.ram.convert(request).unwrap();
    }

    /// A queue of so many entries, with its rings in memory of its own.
    pub fn queue(&self, index: u16, size: u16) -> Queue {
        Queue::new(index, size, self.pages(8))
    }

    /// What a device with these queues is activated with.
    pub fn activation(&self, features: u64, queues: &[&Queue]) -> Activation {
        Activation {
            memory: self.ram.devices().clone(),
            features: features | VERSION_1,
            queues: queues.iter().map(|queue| queue.active()).collect(),
            interrupt: self.interrupts.clone(),
        }
    }
}

/// A counter of a device's.
pub fn counter(device: &dyn VirtioDevice, name: &str) -> u64 {
    let counters = device.counters();
    let found = counters.iter().find(|(other, _)| *other == name);
    found.unwrap_or_else(|| panic!("{name} is not in {counters:?}")).1
}

/// A configuration.
pub fn config(device: &dyn VirtioDevice, offset: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    device.read_config(offset, &mut bytes);
    bytes
}

/// Waits for what has to happen.
#[track_caller]
pub fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "it does not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Descriptors and threads that this process has, by name.
pub fn resources(threads: &str) -> (usize, usize) {
    let count = |path: &str| std::fs::read_dir(path).unwrap();
    let named = count("/proc/self/task").filter(|task| {
        let name = task.as_ref().map(|task| std::fs::read_to_string(task.path().join("comm")));
        matches!(name, Ok(Ok(name)) if name.trim() == threads)
    });
    (count("/proc/self/fd").count(), named.count())
}
