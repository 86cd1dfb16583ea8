//! The transport, by a driver that does what it should and by one that doesn't.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::model::{ModelHypervisor, ModelVm};
use hypervisor::{GpaRange, PageState, VmType};
use proptest::prelude::*;
use virtio_queue::QueueT;

use super::common::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use super::*;
use crate::devices::virtio::worker::Workers;
use crate::memory::{GuestRam, RamOptions};

const BASE: u32 = 0xc000_8000;
const COMMAND: u8 = 4;
/// Rings in shared memory, and an address that is private.
const RINGS: u64 = 0x10_0000;
const PRIVATE: u64 = 0x20_0000;

/// What happened to a device.
#[derive(Default)]
struct Seen {
    active: AtomicBool,
    fails: AtomicBool,
    activation: Mutex<Option<Activation>>,
}

/// Its configuration is four bytes that can be written.
struct Probe(Arc<Seen>, [u8; 4], Workers);

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        4
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 64]
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..4).zip(data) {
            *byte = self.1[at];
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset as usize..4).zip(data) {
            self.1[at] = *byte;
        }
    }
    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        assert!(!self.0.active.swap(true, Ordering::SeqCst), "active already");
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(ActivateError { operation: "work", source: std::io::ErrorKind::Other.into() });
        }
        *self.0.activation.lock().unwrap() = Some(activation);
        Ok(())
    }
    fn deactivate(&mut self) {
        self.0.active.store(false, Ordering::SeqCst);
        *self.0.activation.lock().unwrap() = None;
    }
    fn workers(&self) -> &Workers {
        &self.2
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

struct World {
    vm: Arc<ModelVm>,
    ram: GuestRam,
    seen: Arc<Seen>,
    function: VirtioPci,
}

fn world() -> World {
    world_with(AccessPlatform::Required)
}

fn world_with(access_platform: AccessPlatform) -> World {
    let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
    vm.create_irqchip().unwrap();
    let layout = MemoryLayout::new(Isolation::Software, 4 << 20, 48).unwrap();
    let ram = GuestRam::new(vm.clone(), layout, RamOptions::default()).unwrap();
    let seen = Arc::new(Seen::default());
    let (lines, memory) = (MsiLines::new(vm.clone()), ram.devices().clone());
    let platform = Platform { vm: vm.clone(), lines, memory, access_platform };
    let mut function =
        VirtioPci::new("probe", Box::new(Probe(seen.clone(), [1, 2, 3, 4], Workers::default())), platform, BASE)
            .unwrap();
    function.write_config(COMMAND, &[6, 0]);
    let world = World { vm, ram, seen, function };
    use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
    let range = GpaRange::new(PRIVATE, 0x1000).unwrap();
    let request = ConversionRequest { range, to: PageState::Private, kind: ConversionKind::Host, origin: Origin::Host };
    world.ram.convert(request).unwrap();
    world
}

impl World {
    fn read(&mut self, offset: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read_memory(offset, &mut data[..size]);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, size: usize, value: u64) {
        self.function.write_memory(offset, &value.to_le_bytes()[..size]);
    }

    fn status(&mut self) -> u8 {
        self.read(20, 1) as u8
    }

    fn set_status(&mut self, bits: u8) {
        let status = self.status() | bits;
        self.write(20, 1, status.into());
    }

    /// Accepts these features; says whether the device agrees.
    fn accept(&mut self, features: u64) -> bool {
        self.write(20, 1, 0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(DRIVER);
        for half in [0, 1] {
            self.write(8, 4, half);
            self.write(12, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.set_status(FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    fn set_queue(&mut self, queue: u16, size: u16, rings: u64) {
        self.write(22, 2, queue.into());
        self.write(24, 2, size.into());
        self.write(32, 8, rings);
        // In two halves, as Linux writes them.
        self.write(40, 4, rings + 0x2000);
        self.write(44, 4, 0);
        self.write(48, 8, rings + 0x4000);
        self.write(28, 2, 1);
    }

    fn start(&mut self) {
        assert!(self.accept(VERSION_1 | ACCESS_PLATFORM | RING_EVENT_IDX));
        self.set_queue(0, 128, RINGS);
        self.set_status(DRIVER_OK);
    }

    fn is_active(&self) -> bool {
        self.seen.active.load(Ordering::SeqCst)
    }
}

#[test]
fn the_driver_must_accept_what_the_platform_needs_and_nothing_unknown() {
    let mut world = world();
    let all = VERSION_1 | ACCESS_PLATFORM | RING_EVENT_IDX | RING_INDIRECT_DESC | 1 << 5;
    world.write(0, 4, 1);
    let high = world.read(4, 4);
    world.write(0, 4, 0);
    assert_eq!(world.read(4, 4) | high << 32, all);
    world.write(0, 4, 2);
    assert_eq!(world.read(4, 4), 0);
    assert!(world.accept(all) && world.accept(VERSION_1 | ACCESS_PLATFORM));
    for bad in [0, VERSION_1, ACCESS_PLATFORM, all | 1, all | 1 << 34, all | 1 << 63] {
        assert!(!world.accept(bad), "{bad:#x}");
        world.set_queue(0, 128, RINGS);
        world.set_status(DRIVER_OK);
        assert!(!world.is_active() && world.status() & DRIVER_OK == 0);
    }
    // Final once they are agreed on.
    assert!(world.accept(all));
    world.write(12, 4, 0);
    assert_eq!(world.read(12, 4), all >> 32);
}

#[test]
fn a_driver_may_do_without_what_is_only_offered() {
    for (access_platform, is_offered) in [(AccessPlatform::Offered, true), (AccessPlatform::Off, false)] {
        let mut world = world_with(access_platform);
        world.write(0, 4, 1);
        assert_eq!(world.read(4, 4) << 32 & ACCESS_PLATFORM != 0, is_offered);
        assert!(world.accept(VERSION_1), "{access_platform:?}");
        assert_eq!(world.accept(VERSION_1 | ACCESS_PLATFORM), is_offered, "{access_platform:?}");
    }
}

#[test]
fn a_device_gets_what_the_driver_has_made_ready_and_gives_it_back() {
    let mut world = world();
    world.start();
    {
        let activation = world.seen.activation.lock().unwrap();
        let activation = activation.as_ref().unwrap();
        assert_eq!(activation.features, VERSION_1 | ACCESS_PLATFORM | RING_EVENT_IDX);
        let [queue] = &activation.queues[..] else { panic!("{} queues", activation.queues.len()) };
        assert_eq!((queue.index, queue.queue.size(), queue.queue.event_idx_enabled()), (0, 128, true));
        assert_eq!(
            (queue.queue.desc_table(), queue.queue.avail_ring(), queue.queue.used_ring()),
            (RINGS, RINGS + 0x2000, RINGS + 0x4000)
        );
        let mut count = [0; 8];
        rustix::io::read(&queue.notified, &mut count).unwrap();
        assert_eq!(count, 1u64.to_ne_bytes(), "it looks at its queue once by itself");
    }
    assert_eq!(world.vm.event_addresses(), [u64::from(BASE) + NOTIFY]);
    // What KVM does not serve.
    world.write(NOTIFY, 2, 0);
    world.write(NOTIFY + 4, 2, 1);
    {
        let activation = world.seen.activation.lock().unwrap();
        let notified = &activation.as_ref().unwrap().queues[0].notified;
        rustix::io::read(notified, &mut [0; 8]).unwrap();
        assert!(rustix::io::read(notified, &mut [0; 8]).is_err());
    }
    // The guest moves the memory, and turns it off.
    world.function.write_config(0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!(world.vm.event_addresses(), [0xd000_0000 + NOTIFY]);
    world.function.write_config(COMMAND, &[0]);
    assert!(world.vm.event_addresses().is_empty());
    world.function.write_config(COMMAND, &[2]);
    assert_eq!(world.vm.event_addresses().len(), 1);
    // A queue can't be changed while the device works.
    world.set_queue(1, 64, RINGS);
    assert_eq!(world.read(28, 2), 0);
    world.write(20, 1, 0);
    assert!(!world.is_active() && world.status() == 0 && world.vm.event_addresses().is_empty());
    assert_eq!((world.read(22, 2), world.read(24, 2), world.read(32, 8)), (0, 256, 0));
    world.start();
    assert!(world.is_active());
    let (vm, seen) = (world.vm.clone(), world.seen.clone());
    assert_eq!(vm.interrupt_lines(), [24, 25, 26]);
    drop(world);
    assert!(!seen.active.load(Ordering::SeqCst));
    assert!(vm.event_addresses().is_empty() && vm.interrupt_lines().is_empty() && vm.msi_routes().is_empty());
}

#[test]
fn rings_that_devices_may_not_touch_need_a_reset() {
    let mut world = world();
    let end = 4 << 20;
    for rings in [PRIVATE, PRIVATE - 0x1000 + 8, PRIVATE - 0x4000, 0, end, end - 0x4000, u64::MAX - 0x4000, RINGS + 1] {
        assert!(world.accept(VERSION_1 | ACCESS_PLATFORM));
        world.set_queue(0, 256, rings);
        world.set_status(DRIVER_OK);
        assert!(world.status() & NEEDS_RESET != 0 && !world.is_active(), "{rings:#x}");
        // Nothing helps but a reset.
        world.set_status(DRIVER_OK);
        assert!(!world.is_active());
    }
    world.start();
    assert!(world.is_active() && world.status() == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn a_device_that_can_not_work_needs_a_reset_and_says_so() {
    let mut world = world();
    world.seen.fails.store(true, Ordering::SeqCst);
    world.write(16, 2, 0);
    world.start();
    assert!(world.status() & NEEDS_RESET != 0 && !world.is_active());
    assert_eq!((world.read(ISR, 1), world.read(ISR, 1), world.read(21, 1)), (2, 0, 1));
    assert!(world.vm.event_addresses().is_empty());
    world.seen.fails.store(false, Ordering::SeqCst);
    world.start();
    assert!(world.is_active());
}

#[test]
fn queues_have_the_vectors_that_the_driver_gave_them() {
    let mut world = world();
    let control = world.function.places.msix_control(&world.function.config);
    assert_eq!(control, 2, "three vectors: the table's size less one");
    world.start();
    let interrupt = world.seen.activation.lock().unwrap().as_ref().unwrap().interrupt.clone();
    // None at first; one that is not there is none.
    world.write(22, 2, 0);
    assert_eq!((world.read(16, 2), world.read(26, 2)), (0xffff, 0xffff));
    world.write(26, 2, 3);
    assert_eq!(world.read(26, 2), 0xffff);
    world.write(26, 2, 2);
    world.write(16, 2, 1);
    assert_eq!((world.read(16, 2), world.read(26, 2)), (1, 2));
    // MSI-X on, and all vectors masked: what is triggered is pending.
    let capability = (0..=252u8).step_by(4).find(|at| world.function.config.word(*at) as u8 == 0x11).unwrap();
    world.function.write_config(capability + 3, &[0x80]);
    interrupt.queue_used(0);
    assert_eq!((world.read(PENDING, 1), world.read(ISR, 1)), (0b100, 1));
    interrupt.queue_used(1);
    interrupt.config_changed();
    assert_eq!((world.read(PENDING, 1), world.read(ISR, 1), world.read(21, 1)), (0b110, 3, 1));
    assert!(world.vm.msi_routes().is_empty());
    for vector in 0..3 {
        world.write(TABLE + 16 * vector, 8, 0xfee0_0000);
        world.write(TABLE + 16 * vector + 8, 8, 0x40 + vector);
    }
    assert_eq!(world.read(PENDING, 1), 0);
    let data: Vec<(u32, u32)> = world.vm.msi_routes().iter().map(|route| (route.gsi, route.data)).collect();
    assert_eq!(data, [(24, 0x40), (25, 0x41), (26, 0x42)]);
}

#[test]
fn the_memory_is_there_by_configuration_space_as_well() {
    let mut world = world();
    let window = world.function.config.word(0x34) as u8;
    let mut at = window;
    while world.function.config.word(at + 3) as u8 != 5 || world.function.config.word(at) as u8 != 9 {
        at = (world.function.config.word(at) >> 8) as u8;
        assert_ne!(at, 0, "there is a window");
    }
    let mut access = |bar: u8, offset: u32, length: u32, write: Option<u32>| {
        world.function.write_config(at + 4, &[bar]);
        world.function.write_config(at + 8, &offset.to_le_bytes());
        world.function.write_config(at + 12, &length.to_le_bytes());
        if let Some(value) = write {
            world.function.write_config(at + 16, &value.to_le_bytes());
        }
        let mut data = [0; 4];
        world.function.read_config(at + 16, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(access(0, DEVICE as u32, 4, None), 0x0403_0201);
    assert_eq!(access(0, DEVICE as u32 + 2, 2, None), 0x0403);
    assert_eq!(access(0, DEVICE as u32, 1, Some(0xff77)), 0x77);
    assert_eq!(access(0, DEVICE as u32, 4, None), 0x0403_0277);
    // What is no sound access leaves everything as it is.
    for (bar, offset, length) in
        [(1, 0, 4), (0, DEVICE as u32 + 1, 2), (0, 0x8000, 4), (0, u32::MAX, 1), (0, 0, 3), (0, 0, 0)]
    {
        assert_eq!(access(bar, offset, length, Some(0x1234_5678)), 0x1234_5678, "{bar} {offset:#x} {length}");
    }
    assert_eq!(access(0, DEVICE as u32, 4, None), 0x0403_0277);
}

#[derive(Debug, Clone)]
enum Access {
    ReadConfig(u8, usize),
    WriteConfig(u8, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

/// Accesses that a driver might make, with values that might mean something, and any others.
fn access() -> impl Strategy<Value = Access> {
    let value = prop_oneof![
        any::<u64>(),
        (0..64u32).prop_map(|bit| 1 << bit),
        prop::sample::select(vec![
            RINGS,
            RINGS + 0x1000,
            PRIVATE,
            0xf,
            0xb,
            7,
            1,
            3,
            0,
            0xc012_0000,
            VERSION_1,
            0xffff_ffff
        ]),
    ];
    let data = (value, 0..9usize).prop_map(|(value, size)| value.to_le_bytes()[..size].to_vec());
    let offset = prop_oneof![
        0..64u64,
        (0..8u64, 0..64u64).prop_map(|(part, within)| part * PART + within),
        0..u64::from(MEMORY_SIZE),
    ];
    prop_oneof![
        (any::<u8>(), 0..9usize).prop_map(|(offset, size)| Access::ReadConfig(offset, size)),
        (any::<u8>(), data.clone()).prop_map(|(offset, data)| Access::WriteConfig(offset, data)),
        (offset.clone(), 0..9usize).prop_map(|(offset, size)| Access::Read(offset, size)),
        (offset.clone(), data.clone()).prop_map(|(offset, data)| Access::Write(offset, data)),
        (offset, data).prop_map(|(offset, data)| Access::Write(offset, data)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any value in any register at any time, in any width: the device works if, and only if, the driver has said so of
    /// features that are sound and rings that are shared, and a reset makes it as new.
    #[test]
    fn a_hostile_driver_gets_nowhere(accesses in prop::collection::vec(access(), 0..200), starts in any::<bool>()) {
        let mut world = world();
        if starts {
            world.start();
        }
        for access in accesses {
            match access {
                Access::ReadConfig(offset, size) => world.function.read_config(offset, &mut vec![0; size]),
                Access::WriteConfig(offset, data) => world.function.write_config(offset, &data),
                Access::Read(offset, size) => world.function.read_memory(offset, &mut vec![0; size]),
                Access::Write(offset, data) => world.function.write_memory(offset, &data),
            }
            let status = world.status();
            prop_assert_eq!(status & !(ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED), 0);
            let works = status & DRIVER_OK != 0 && status & NEEDS_RESET == 0;
            prop_assert_eq!(world.is_active(), works);
            prop_assert_eq!(world.function.active.is_some(), works);
            if status & (DRIVER_OK | FEATURES_OK) != 0 {
                let features = world.function.common.features();
                prop_assert_eq!(features & (VERSION_1 | ACCESS_PLATFORM), VERSION_1 | ACCESS_PLATFORM);
                prop_assert_eq!(features & !(VERSION_1 | ACCESS_PLATFORM | RING_EVENT_IDX | RING_INDIRECT_DESC | 1 << 5), 0);
            }
            for address in world.vm.event_addresses() {
                prop_assert!(works && (0xc000_0000..0xfec0_0000).contains(&address), "{:#x}", address);
            }
        }
        world.start();
        prop_assert!(world.is_active());
    }
}
