//! Listeners hear of every conversion in order, keep nothing that is private, and can refuse.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hypervisor::PageState::{Private, Shared};
use hypervisor::faults::{Failure, Operation};
use hypervisor::{GpaRange, PAGE_SIZE};
use vmm::memory::ConversionError;
use vmm::memory::conversion::ConversionListener;

use crate::reference::Reference;
use crate::world::{Kind, World, host, pages};

const BASE: u64 = 1 << 20;
const SIZE: u64 = 2 << 20;

type Log = Arc<Mutex<Vec<String>>>;

/// What a listener does while it is told to map.
type Interlude = Box<dyn Fn() + Send>;

/// Keeps a set of the pages that it maps.
struct Iommu {
    name: &'static str,
    mapped: Mutex<BTreeSet<u64>>,
    refuses: AtomicBool,
    /// Done once, in the middle of the next map.
    interlude: Mutex<Option<Interlude>>,
    log: Log,
}

impl Iommu {
    fn new(name: &'static str, log: &Log) -> Arc<Self> {
        Arc::new(Self {
            name,
            mapped: Mutex::default(),
            refuses: AtomicBool::new(false),
            interlude: Mutex::default(),
            log: log.clone(),
        })
    }

    fn has(&self, gpa: u64) -> bool {
        self.mapped.lock().unwrap().contains(&gpa)
    }
}

fn all_of(range: GpaRange) -> impl Iterator<Item = u64> {
    (range.start()..range.end()).step_by(PAGE_SIZE as usize)
}

impl ConversionListener for Iommu {
    fn name(&self) -> &str {
        self.name
    }

    fn map(&self, range: GpaRange) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let interlude = self.interlude.lock().unwrap().take();
        if let Some(interlude) = interlude {
            interlude();
        }
        if self.refuses.load(Ordering::Relaxed) {
            return Err("no room".into());
        }
        self.log.lock().unwrap().push(format!("{} maps {range}", self.name));
        self.mapped.lock().unwrap().extend(all_of(range));
        Ok(())
    }

    fn unmap(&self, range: GpaRange) {
        self.log.lock().unwrap().push(format!("{} unmaps {range}", self.name));
        self.mapped.lock().unwrap().retain(|gpa| !range.contains(*gpa));
    }
}

fn guest() -> (World, Log, Arc<Iommu>, Arc<Iommu>) {
    let (world, log) = (World::new(Kind::SevSnp, SIZE), Log::default());
    let (first, second) = (Iommu::new("first", &log), Iommu::new("second", &log));
    world.ram.add_listener(first.clone()).unwrap();
    world.ram.add_listener(second.clone()).unwrap();
    log.lock().unwrap().clear();
    (world, log, first, second)
}

fn said(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap())
}

#[test]
fn pages_are_taken_in_reverse_and_given_in_order() {
    let (world, log, first, second) = guest();
    let range = pages(BASE, 3);
    world.ram.convert(host(range, Private)).unwrap();
    assert_eq!(said(&log), [format!("second unmaps {range}"), format!("first unmaps {range}")]);
    assert!(!first.has(BASE) && !second.has(BASE) && first.has(BASE - PAGE_SIZE));
    world.ram.convert(host(range, Shared)).unwrap();
    assert_eq!(said(&log), [format!("first maps {range}"), format!("second maps {range}")]);
    // What changes nothing is nobody's business.
    world.ram.convert(host(range, Shared)).unwrap();
    assert!(said(&log).is_empty());
}

#[test]
fn a_listener_that_can_not_map_undoes_the_conversion_and_its_contents_are_kept() {
    let (mut world, log, first, second) = guest();
    let range = pages(BASE, 3);
    let mut reference = Reference::new(all_of(range));
    world.ram.convert(host(range, Private)).unwrap();
    reference.convert(range, Private);
    world.guest_writes(BASE, Private, 7).unwrap();
    reference.0.get_mut(&BASE).unwrap().word = 7;
    said(&log);

    second.refuses.store(true, Ordering::Relaxed);
    let error = world.ram.convert(host(range, Shared)).unwrap_err();
    assert!(matches!(&error, ConversionError::Unmappable { listener, .. } if listener == "second"), "{error:?}");
    assert!(!error.is_fatal());
    reference.check(&world);
    assert!(!first.has(BASE) && !second.has(BASE));
    assert_eq!(said(&log)[0], format!("first maps {range}"));

    second.refuses.store(false, Ordering::Relaxed);
    world.ram.convert(host(range, Shared)).unwrap();
    reference.convert(range, Shared);
    reference.check(&world);
    assert!(first.has(BASE) && second.has(BASE));
}

#[test]
fn a_conversion_to_private_that_fails_gives_the_pages_back() {
    let (world, log, first, second) = guest();
    let range = pages(BASE, 3);
    world.faults.fail(Operation::SetAttribute, Failure::new(libc::ENOMEM));
    world.ram.convert(host(range, Private)).unwrap_err();
    let unmaps = [format!("second unmaps {range}"), format!("first unmaps {range}")];
    let maps = [format!("first maps {range}"), format!("second maps {range}")];
    assert_eq!(said(&log), [unmaps, maps].concat());
    assert!(first.has(BASE) && second.has(BASE));
}

#[test]
fn a_new_listener_gets_what_is_shared_and_nothing_else() {
    let (world, log, ..) = guest();
    world.ram.convert(host(pages(BASE, 2), Private)).unwrap();
    let third = Iommu::new("third", &log);
    world.ram.add_listener(third.clone()).unwrap();
    assert!(!third.has(BASE) && !third.has(BASE + PAGE_SIZE));
    assert!(third.has(BASE - PAGE_SIZE) && third.has(BASE + 2 * PAGE_SIZE) && third.has(0));

    let as_listener: Arc<dyn ConversionListener> = third.clone();
    world.ram.remove_listener(&as_listener);
    assert!(third.mapped.lock().unwrap().is_empty());
    world.ram.convert(host(pages(BASE, 2), Shared)).unwrap();
    assert!(third.mapped.lock().unwrap().is_empty());
}

#[test]
fn a_new_listener_that_can_not_map_is_told_of_nothing_more() {
    let (world, log, ..) = guest();
    let third = Iommu::new("third", &log);
    third.refuses.store(true, Ordering::Relaxed);
    assert!(world.ram.add_listener(third.clone()).is_err());
    said(&log);
    world.ram.convert(host(pages(BASE, 2), Private)).unwrap();
    assert!(!said(&log).iter().any(|line| line.starts_with("third")));
}

#[test]
fn a_new_listener_gets_no_page_that_is_on_its_way_to_private() {
    let (world, log, first, _) = guest();
    let range = pages(BASE, 2);
    let window = world.view.window(vm_memory::GuestAddress(BASE), 8).unwrap();
    std::thread::scope(|scope| {
        let conversion = scope.spawn(|| world.ram.convert(host(range, Private)));
        while world.ram.statistics().converting_bytes == 0 {
            std::thread::yield_now();
        }
        let third = Iommu::new("third", &log);
        world.ram.add_listener(third.clone()).unwrap();
        assert!(!third.has(BASE) && third.has(BASE + 2 * PAGE_SIZE));
        drop(window);
        conversion.join().unwrap().unwrap();
        assert!(!third.has(BASE) && !first.has(BASE));
    });
}

#[test]
fn a_listener_that_is_removed_while_it_maps_keeps_nothing() {
    let (world, _, first, second) = guest();
    let range = pages(BASE, 1);
    world.ram.convert(host(range, Private)).unwrap();
    let (ram, gone) = (world.ram.clone(), second.clone() as Arc<dyn ConversionListener>);
    // Between the publication and the second's turn.
    *first.interlude.lock().unwrap() = Some(Box::new(move || ram.remove_listener(&gone)));
    world.ram.convert(host(range, Shared)).unwrap();
    assert!(first.has(BASE) && !second.has(BASE));
    world.ram.convert(host(range, Private)).unwrap();
    assert!(!first.has(BASE) && !second.has(BASE));
}

#[test]
fn a_request_for_shared_waits_until_the_listeners_have_the_pages() {
    let (world, _, first, second) = guest();
    let range = pages(BASE, 1);
    world.ram.convert(host(range, Private)).unwrap();
    second.refuses.store(true, Ordering::Relaxed);
    let (ram, (answer, answered)) = (world.ram.clone(), std::sync::mpsc::channel());
    // While one conversion maps, another one asks for the same, and is not answered before it is decided.
    *first.interlude.lock().unwrap() = Some(Box::new(move || {
        let (ram, answer) = (ram.clone(), answer.clone());
        std::thread::spawn(move || answer.send(ram.convert(host(range, Shared)).is_ok()));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }));
    world.ram.convert(host(range, Shared)).unwrap_err();
    // The second one found the pages private again, and tried for itself.
    assert!(!answered.recv_timeout(std::time::Duration::from_secs(20)).unwrap());
    assert_eq!(world.state(BASE), Private);
}

#[test]
fn a_way_back_that_fails_for_good_stops_the_machine() {
    let (world, _, _, second) = guest();
    let range = pages(BASE, 3);
    world.ram.convert(host(range, Private)).unwrap();
    second.refuses.store(true, Ordering::Relaxed);
    // Shared goes well; back to private gets half-way, and no further in either direction.
    world.faults.fail(Operation::SetAttribute, Failure::new(libc::EAGAIN).after(1).partly(PAGE_SIZE));
    world.faults.fail(Operation::SetAttribute, Failure::new(libc::EIO).always());
    let error = world.ram.convert(host(range, Shared)).unwrap_err();
    assert!(matches!(error, ConversionError::Inconsistent { .. }), "{error:?}");
}

#[test]
fn a_way_back_that_fails_leaves_the_pages_shared_without_listeners() {
    let (world, _, first, second) = guest();
    let range = pages(BASE, 3);
    world.ram.convert(host(range, Private)).unwrap();
    second.refuses.store(true, Ordering::Relaxed);
    world.faults.fail(Operation::SetAttribute, Failure::new(libc::ENOMEM).after(1));
    let error = world.ram.convert(host(range, Shared)).unwrap_err();
    assert!(matches!(error, ConversionError::Unmappable { .. }), "{error:?}");
    let mut reference = Reference::new(all_of(range));
    reference.convert(range, Shared);
    reference.check(&world);
    assert!(!first.has(BASE) && !second.has(BASE));
    world.device_writes(BASE, 1).unwrap();
}

#[test]
fn memory_that_is_not_for_devices_is_not_for_listeners() {
    let (world, log) = (World::new(Kind::Software, SIZE), Log::default());
    let iommu = Iommu::new("iommu", &log);
    world.ram.add_listener(iommu.clone()).unwrap();
    assert!(!iommu.has(0x1000) && iommu.has(BASE));
    world.ram.convert(host(pages(0x1000, 1), Private)).unwrap();
    world.ram.convert(host(pages(0x1000, 1), Shared)).unwrap();
    assert!(!iommu.has(0x1000));
}
