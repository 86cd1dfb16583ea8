//! Devices that come and go, with a guest that is played by the test.

use std::sync::atomic::{AtomicUsize, Ordering};

use arch::x86_64::map::{
    EVENT_PORT, EVENT_POWER_BUTTON, EVENT_SLOTS, SLOTS_EJECT_PORT, SLOTS_FILLED_PORT, SLOTS_LEAVING_PORT,
};
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::VmType;
use hypervisor::model::{ModelHypervisor, ModelVm};
use serde_json::Value;

use super::*;
use crate::devices::pci::Function;
use crate::devices::virtio::worker::{Workers, tests::Crowd};
use crate::devices::virtio::{ActivateError, Activation};
use crate::memory::{GuestRam, RamOptions};

/// Counts how many of its kind there are.
struct Probe(Arc<AtomicUsize>, Workers);

impl Probe {
    fn new(alive: &Arc<AtomicUsize>) -> Box<Self> {
        alive.fetch_add(1, Ordering::SeqCst);
        Box::new(Self(alive.clone(), Workers::default()))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        4
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, _: Activation) -> std::result::Result<(), ActivateError> {
        Ok(())
    }
    fn deactivate(&mut self) {
        self.1.end();
    }
    fn workers(&self) -> &Workers {
        &self.1
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("lives", 1)]
    }
}

fn manager() -> (Arc<ModelVm>, Arc<DeviceManager>) {
    let (vm, manager, _) = manager_of(AccessPlatform::Required);
    (vm, manager)
}

fn manager_of(access_platform: AccessPlatform) -> (Arc<ModelVm>, Arc<DeviceManager>, Arc<GuestRam>) {
    let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
    vm.create_irqchip().unwrap();
    let layout = MemoryLayout::new(Isolation::Software, 4 << 20, 48).unwrap();
    let ram = GuestRam::new(vm.clone(), layout, RamOptions::default()).unwrap();
    let manager = DeviceManager::new(vm.clone(), ram.devices().clone(), access_platform, Arc::default()).unwrap();
    (vm, manager, Arc::new(ram))
}

fn register(manager: &DeviceManager, port: u16) -> u32 {
    let mut data = [0xff; 4];
    manager.read_events(port, &mut data);
    u32::from_le_bytes(data)
}

fn is_there(manager: &DeviceManager, slot: u32) -> bool {
    manager.bus().write_port(0xcf8, &(1 << 31 | slot << 11).to_le_bytes());
    let mut data = [0xff; 2];
    manager.bus().read_port(0xcfc, &mut data);
    data != [0xff; 2]
}

#[test]
fn a_device_is_there_until_the_guest_lets_go_of_it() {
    let (vm, manager) = manager();
    let alive = Arc::default();
    let lines = vm.interrupt_lines();
    let first = manager.add("rng", None, Probe::new(&alive)).unwrap();
    let second = manager.add("rng", Some("mine"), Probe::new(&alive)).unwrap();
    assert_eq!((first.id.as_str(), first.bdf.as_str()), ("_rng0", "0000:00:01.0"));
    assert_eq!((second.id.as_str(), second.bdf.as_str()), ("mine", "0000:00:02.0"));
    assert_eq!(register(&manager, EVENT_PORT), EVENT_SLOTS);
    assert_eq!((register(&manager, EVENT_PORT), register(&manager, SLOTS_FILLED_PORT)), (0, 0b110));
    assert_eq!((register(&manager, SLOTS_FILLED_PORT), register(&manager, SLOTS_LEAVING_PORT)), (0, 0));

    manager.remove("mine").unwrap();
    manager.remove("mine").unwrap();
    assert_eq!((register(&manager, EVENT_PORT), register(&manager, SLOTS_LEAVING_PORT)), (EVENT_SLOTS, 0b100));
    assert!(is_there(&manager, 2) && manager.list() == [first.clone(), second]);
    // What nobody asked for, what is not there, and registers and widths that are none.
    manager.write_events(SLOTS_EJECT_PORT, &(!0b100u32).to_le_bytes());
    manager.write_events(SLOTS_EJECT_PORT, &[0b100]);
    manager.write_events(SLOTS_LEAVING_PORT, &[0xff; 4]);
    assert_eq!((manager.list().len(), alive.load(Ordering::SeqCst)), (2, 2));

    manager.write_events(SLOTS_EJECT_PORT, &0b100u32.to_le_bytes());
    assert!(!is_there(&manager, 2) && manager.list() == [first]);
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    assert_eq!(vm.interrupt_lines().len(), lines.len() + 2);
    assert!(!manager.counters().contains_key("mine"));
    // The slot is free again, and the name.
    let again = manager.add("rng", Some("mine"), Probe::new(&alive)).unwrap();
    assert_eq!(again.bdf, "0000:00:02.0");
    assert_eq!(manager.counters()["mine"]["lives"], 1);
    drop(manager);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    assert!(vm.msi_routes().is_empty() && vm.interrupt_lines() == lines);
}

#[test]
fn that_a_device_is_gone_is_told_when_it_is_and_once() {
    let (_vm, manager) = manager();
    let (heard, told) = std::sync::mpsc::channel();
    manager.monitor.tell(Box::new(move |event: Value| {
        assert_eq!((&event["source"], &event["event"]), (&"vm".into(), &"device-removed".into()));
        heard.send(event["properties"]["id"].as_str().unwrap().to_owned()).unwrap();
    }));
    let alive = Arc::default();
    for id in ["first", "second", "third"] {
        manager.add("rng", Some(id), Probe::new(&alive)).unwrap();
    }
    for id in ["first", "first", "second"] {
        manager.remove(id).unwrap();
    }
    assert!(told.try_recv().is_err(), "the guest was only asked");
    for _ in 0..2 {
        manager.write_events(SLOTS_EJECT_PORT, &0b10u32.to_le_bytes());
    }
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["first"]);
    // One that the guest does not let go of goes with the machine; the third was not to go.
    for _ in 0..2 {
        manager.end();
    }
    assert_eq!((told.try_iter().collect::<Vec<_>>(), alive.load(Ordering::SeqCst)), (vec!["second".to_owned()], 0));
}

#[test]
fn nothing_is_left_when_the_machine_has_ended() {
    let (vm, manager) = manager();
    let (alive, lines) = (Arc::default(), vm.interrupt_lines());
    manager.add("rng", None, Probe::new(&alive)).unwrap();
    manager.add("rng", None, Probe::new(&alive)).unwrap();
    manager.end();
    assert_eq!((alive.load(Ordering::SeqCst), vm.interrupt_lines()), (0, lines));
    assert!(manager.list().is_empty() && manager.counters().is_empty() && !is_there(&manager, 1));
    assert!(matches!(manager.add("rng", None, Probe::new(&alive)), Err(Error::Ended)));
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn all_devices_are_asked_before_one_is_waited_for() {
    let (_vm, manager) = manager();
    let (alive, crowd) = (Arc::default(), Crowd::new(6));
    for _ in 0..3 {
        let mut probe = Probe::new(&alive);
        (0..2).for_each(|_| crowd.join(&mut probe.1));
        manager.add("busy", None, probe).unwrap();
    }
    crowd.wait_for_requests(1);
    manager.pause();
    assert_eq!(crowd.ended(), 6);
    manager.resume();
    crowd.wait_for_requests(2);
    manager.end();
    assert_eq!((crowd.ended(), alive.load(Ordering::SeqCst)), (12, 0));
}

#[test]
fn devices_that_the_guest_lets_go_of_at_once_end_at_once() {
    let (_vm, manager) = manager();
    let (alive, crowd) = (Arc::default(), Crowd::new(3));
    for id in ["a", "b", "c", "stays"] {
        let mut probe = Probe::new(&alive);
        if id != "stays" {
            crowd.join(&mut probe.1);
        }
        manager.add("busy", Some(id), probe).unwrap();
    }
    crowd.wait_for_requests(1);
    ["a", "b", "c"].iter().for_each(|id| manager.remove(id).unwrap());
    manager.write_events(SLOTS_EJECT_PORT, &0b11110u32.to_le_bytes());
    assert_eq!((crowd.ended(), alive.load(Ordering::SeqCst)), (3, 1));
}

#[test]
fn errors_say_what_is_wrong_and_take_nothing() {
    let (vm, manager) = manager();
    let alive = Arc::default();
    let lines = vm.interrupt_lines();
    let error = manager.remove("disk7").unwrap_err().to_string();
    assert_eq!(error, "the machine has no device \"disk7\": its devices are none");
    manager.add("rng", Some("a"), Probe::new(&alive)).unwrap();
    for (id, reason) in [("a", "another device has it"), ("", "it is empty")] {
        let error = manager.add("rng", Some(id), Probe::new(&alive)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    for _ in 2..PCI_SLOTS {
        manager.add("rng", None, Probe::new(&alive)).unwrap();
    }
    let error = manager.add("rng", None, Probe::new(&alive)).unwrap_err().to_string();
    assert!(error.contains("all 31 slots") && error.contains("remove a device"), "{error}");
    assert_eq!((manager.list().len(), alive.load(Ordering::SeqCst)), (31, 31));
    assert!(manager.set_balloon(1 << 20).is_err());
    drop(manager);
    assert_eq!(vm.interrupt_lines(), lines);
}

#[test]
fn a_balloon_is_set_where_there_is_one() {
    let config = BalloonConfig { size: 0, deflate_on_oom: false, free_page_reporting: true };
    let (_vm, manager, ram) = manager_of(AccessPlatform::Offered);
    assert!(matches!(manager.set_balloon(0), Err(Error::NoBalloon)) && manager.list().is_empty());
    manager.add_balloon(&config, ram).unwrap();
    manager.set_balloon(1 << 20).unwrap();
    let size = manager.balloon().as_ref().unwrap().1.clone();
    assert_eq!((size.target(), manager.balloon_size()), (1 << 20, 0));
    // The guest says that it has given two pages back, in the second field of the device's own registers.
    lock(&manager.functions()["_balloon0"]).write_memory(0x2004, &2u32.to_le_bytes());
    assert_eq!(manager.balloon_size(), 2 << 12);
    assert_eq!(manager.list()[0].id, "_balloon0");
    assert!(manager.set_balloon(u64::MAX).is_err());
    manager.remove("_balloon0").unwrap();
    manager.write_events(SLOTS_EJECT_PORT, &0b10u32.to_le_bytes());
    assert!(matches!(manager.set_balloon(0), Err(Error::NoBalloon)) && manager.balloon_size() == 0);
}

#[test]
fn nobody_waits_for_a_device_that_is_being_made_and_its_place_is_kept() {
    let (vm, manager) = manager();
    let (lines, alive) = (vm.interrupt_lines(), Arc::default());
    // One that can't be made gives its place back; one that can be keeps it; one is too late.
    for (succeeds, ends) in [(false, false), (true, false), (true, true)] {
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (manager, alive) = (&manager, &alive);
            let id = if ends { "late" } else { "slow" };
            let made = scope.spawn(move || {
                manager.plug(Wanted::new("rng", Some(id.into()), move |_| {
                    begun.send(()).unwrap();
                    goes_on.recv().unwrap();
                    if succeeds { Ok(Probe::new(alive)) } else { Err(Error::NoBalloon) }
                }))
            });
            has_begun.recv().unwrap();
            let count = manager.list().len();
            assert_eq!(manager.counters().len(), count);
            assert!(manager.add("rng", Some(id), Probe::new(alive)).is_err(), "the name is reserved");
            let other = manager.add("rng", Some("other"), Probe::new(alive)).unwrap();
            manager.remove("other").unwrap();
            let slot = u32::from_str_radix(&other.bdf[8..10], 16).unwrap();
            assert_eq!(slot as usize, count + 2, "the slot is reserved");
            manager.write_events(SLOTS_EJECT_PORT, &(1u32 << slot).to_le_bytes());
            assert_eq!(manager.list().len(), count);
            if ends {
                manager.end();
            }
            go_on.send(()).unwrap();
            assert_eq!(made.join().unwrap().is_ok(), succeeds && !ends);
        });
        assert_eq!(alive.load(Ordering::SeqCst), manager.list().len());
        assert!(manager.inventory().reserved.is_empty());
    }
    assert_eq!(vm.interrupt_lines(), lines);
}

#[test]
fn a_slot_is_free_only_when_its_device_has_ended() {
    let (_vm, manager) = manager();
    let alive = Arc::default();
    manager.add("rng", Some("mine"), Probe::new(&alive)).unwrap();
    manager.remove("mine").unwrap();
    // An access that is under way keeps the function, and the device from ending.
    let function = manager.functions()["mine"].clone();
    let access = lock(&function);
    std::thread::scope(|scope| {
        let ejected = scope.spawn(|| manager.write_events(SLOTS_EJECT_PORT, &0b10u32.to_le_bytes()));
        while manager.inventory().devices[&1].stage != Stage::Ending {
            std::thread::yield_now();
        }
        assert!(manager.add("rng", Some("mine"), Probe::new(&alive)).is_err());
        assert_eq!(manager.add("rng", None, Probe::new(&alive)).unwrap().bdf, "0000:00:02.0");
        drop(access);
        ejected.join().unwrap();
    });
    // What it had is given back as well (a tap, a file), although that access still has its function.
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    assert_eq!(lock(&function).counters(), []);
    assert_eq!(manager.add("rng", Some("mine"), Probe::new(&alive)).unwrap().bdf, "0000:00:01.0");
}

#[test]
fn the_power_button_is_an_event() {
    let (_vm, manager) = manager();
    manager.power_button().unwrap();
    assert_eq!((register(&manager, EVENT_PORT), register(&manager, EVENT_PORT)), (EVENT_POWER_BUTTON, 0));
    // Another width takes nothing away.
    manager.power_button().unwrap();
    for size in [0, 1, 2, 3, 5, 8] {
        manager.read_events(EVENT_PORT, &mut vec![0xff; size]);
    }
    assert_eq!(register(&manager, EVENT_PORT), EVENT_POWER_BUTTON);
}
