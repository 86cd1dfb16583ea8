//! Large discards run behind the reply, within a bound, and always ahead of any reuse.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use arch::x86_64::MemoryLayout;
use hypervisor::PageState::{Private, Shared};
use hypervisor::faults::{Failure, Operation};
use hypervisor::model::ModelHypervisor;
use hypervisor::observed::ObservedVm;
use hypervisor::{PAGE_SIZE, VmType};
use vmm::memory::conversion::PIECE;
use vmm::memory::discards::QUIET;
use vmm::memory::{ConversionError, GuestRam, RamOptions};

use crate::world::{Kind, World, host, pages};

const MIB: u64 = 1 << 20;

/// A VM's discards, whose thread stands still until it is let go.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    /// The thread stands still.
    arrived: AtomicBool,
    /// What was discarded, and by which thread.
    discards: Mutex<Vec<(u64, u64, bool)>>,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn pass(&self, offset: u64, size: u64) {
        let behind = std::thread::current().name() == Some("discard");
        if behind {
            self.arrived.store(true, Ordering::Relaxed);
            drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
        }
        self.discards.lock().unwrap().push((offset, size, behind));
    }

    /// Discards since this was last asked: offset, size, and whether the thread for discards did it.
    fn discards(&self) -> Vec<(u64, u64, bool)> {
        std::mem::take(&mut *self.discards.lock().unwrap())
    }
}

fn guest(size: u64, options: RamOptions) -> (Arc<Gate>, GuestRam) {
    let gate = Arc::new(Gate::default());
    let passing = gate.clone();
    let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
    let vm = ObservedVm::with_discards(vm, Box::new(move |_, offset, size| passing.pass(offset, size)));
    let layout = MemoryLayout::one_alias(size, 46).unwrap();
    let ram = GuestRam::new(vm, layout, options).unwrap();
    (gate, ram)
}

/// Opens the gate when the test ends, however it does, so that memory can be dropped.
struct Opening<'a>(&'a Gate);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[test]
fn a_small_discard_is_done_at_once_and_a_large_one_behind_the_reply() {
    let (vm, ram) = guest(64 * MIB, RamOptions::default());
    let _opening = Opening(&vm);
    ram.convert(host(pages(0, 4), Private)).unwrap();
    assert_eq!(vm.discards(), [(0, 4 * PAGE_SIZE, false)]);
    assert_eq!(ram.statistics().discard_backlog_bytes, 0);

    ram.convert(host(pages(2 * MIB, 512), Private)).unwrap();
    assert_eq!(vm.discards(), []);
    assert_eq!(ram.statistics().discard_backlog_bytes, 2 * MIB);
    vm.open();
    while ram.statistics().discard_backlog_bytes > 0 {
        std::thread::yield_now();
    }
    assert_eq!(vm.discards(), [(2 * MIB, 2 * MIB, true)]);
}

#[test]
fn large_discards_wait_until_nothing_else_goes_on() {
    let (vm, ram) = guest(64 * MIB, RamOptions::default());
    vm.open();
    ram.convert(host(pages(2 * MIB, 512), Private)).unwrap();
    let start = Instant::now();
    let (mut last, mut longest) = (start, Duration::ZERO);
    for page in 0.. {
        let to = if page / 256 % 2 == 0 { Private } else { Shared };
        ram.convert(host(pages(page % 256 * PAGE_SIZE, 1), to)).unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if start.elapsed() > 5 * QUIET {
            break;
        }
    }
    let behind = vm.discards().into_iter().any(|(.., behind)| behind);
    longest = longest.max(last.elapsed());
    // On a busy machine this thread may stand still for so long that nothing else went on.
    assert!(!behind || longest >= QUIET / 2, "the thread worked beside conversions, none of which took {longest:?}");
    while ram.statistics().discard_backlog_bytes > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn what_finds_no_quiet_moment_is_done_all_the_same() {
    /// Whose discard takes until it is let go.
    const BUSY: &str = "busy";
    let gate = Arc::new(Gate::default());
    let passing = gate.clone();
    let hypervisor = ModelHypervisor::new();
    let vm = hypervisor.create(VmType::SwProtected).unwrap();
    let vm = ObservedVm::with_discards(
        vm,
        Box::new(move |_, offset, size| {
            let name = std::thread::current().name().map(str::to_owned);
            if name.as_deref() == Some(BUSY) {
                passing.arrived.store(true, Ordering::Relaxed);
                drop(passing.opened.wait_while(passing.open.lock().unwrap(), |open| !*open).unwrap());
            }
            passing.discards.lock().unwrap().push((offset, size, name.as_deref() == Some("discard")));
        }),
    );
    let layout = MemoryLayout::one_alias(64 * MIB, 46).unwrap();
    let options = RamOptions { discard_backlog: Some(2 * MIB), ..RamOptions::default() };
    let ram = GuestRam::new(vm, layout, options).unwrap();
    let done = std::thread::scope(|scope| {
        // Too large to wait, so that whoever converts discards it, and there is no quiet moment.
        let busy = || ram.convert(host(pages(32 * MIB, 1024), Private)).unwrap();
        std::thread::Builder::new().name(BUSY.into()).spawn_scoped(scope, busy).unwrap();
        let opening = Opening(&gate);
        while !gate.arrived.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        hypervisor.faults().fail(Operation::DiscardShared, Failure::new(libc::ENOMEM));
        ram.convert(host(pages(0, 4), Private)).unwrap();
        ram.convert(host(pages(2 * MIB, 256), Private)).unwrap();
        gate.discards();
        let start = Instant::now();
        let mut done = Vec::new();
        while done.len() < 2 && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
            done.extend(gate.discards());
        }
        drop(opening);
        done
    });
    assert_eq!(done, [(0, 4 * PAGE_SIZE, true), (2 * MIB, MIB, true)], "the oldest first");
}

#[test]
fn beyond_the_bound_whoever_converts_discards() {
    let (vm, ram) = guest(64 * MIB, RamOptions { discard_backlog: Some(8 * MIB), ..RamOptions::default() });
    let _opening = Opening(&vm);
    for piece in 0..8 {
        ram.convert(host(pages(piece * 4 * MIB, 1024), Private)).unwrap();
        assert!(
            ram.statistics().discard_backlog_bytes <= 12 * MIB,
            "8 MiB queued, and the piece that the thread is at"
        );
    }
    let mine: u64 = vm.discards().iter().filter(|(.., behind)| !behind).map(|(_, size, _)| size).sum();
    assert!((20 * MIB..=24 * MIB).contains(&mine), "{mine:#x}");
}

#[test]
fn the_default_bound_is_a_64th_of_ram_and_at_least_8_mib() {
    for (size, bound) in [(64 * MIB, 8 * MIB), (1024 * MIB, 16 * MIB)] {
        let (vm, ram) = guest(size, RamOptions::default());
        let _opening = Opening(&vm);
        ram.convert(host(pages(0, size / PAGE_SIZE), Private)).unwrap();
        let owed = ram.statistics().discard_backlog_bytes;
        assert!((bound..=bound + PIECE).contains(&owed), "{owed:#x}");
    }
}

#[test]
fn pages_that_are_owed_are_settled_before_they_are_used_again() {
    let (vm, ram) = guest(64 * MIB, RamOptions::default());
    let _opening = Opening(&vm);
    let page = 4 * MIB;
    ram.devices().view("device").write_obj(7u64, vm_memory::GuestAddress(page)).unwrap();
    // The thread is held up by the first; the second only waits.
    ram.convert(host(pages(0, 512), Private)).unwrap();
    while !vm.arrived.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    ram.convert(host(pages(page, 512), Private)).unwrap();
    assert_eq!(ram.statistics().discard_backlog_bytes, 4 * MIB);
    ram.convert(host(pages(page, 1), Shared)).unwrap();
    assert!(vm.discards().contains(&(page, 2 * MIB, false)), "whoever needs the page does it");
    assert_eq!(ram.devices().view("device").read_obj::<u64>(vm_memory::GuestAddress(page)).unwrap(), 0);

    // What the thread has begun is waited for.
    std::thread::scope(|scope| {
        let conversion = scope.spawn(|| ram.convert(host(pages(0, 1), Shared)));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!conversion.is_finished());
        vm.open();
        conversion.join().unwrap().unwrap();
        assert_eq!(vm.discards()[0], (0, 2 * MIB, true));
    });
}

#[test]
fn a_small_discard_is_waited_for_by_who_needs_its_pages_and_by_nobody_else() {
    let (vm, ram) = guest(64 * MIB, RamOptions::default());
    let _opening = Opening(&vm);
    std::thread::scope(|scope| {
        // A vCPU that stands still at the gate.
        let slow = std::thread::Builder::new().name("discard".into());
        let slow = slow.spawn_scoped(scope, || ram.convert(host(pages(0, 1), Private))).unwrap();
        while !vm.arrived.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        assert_eq!(ram.statistics().discard_backlog_bytes, PAGE_SIZE);
        assert_eq!(ram.statistics().private_bytes, PAGE_SIZE, "it is private already");
        assert!(!ram.convert(host(pages(0, 1), Private)).unwrap(), "and nothing to be done about it");
        ram.convert(host(pages(MIB, 1), Private)).unwrap();
        ram.convert(host(pages(MIB, 1), Shared)).unwrap();

        let back = scope.spawn(|| ram.convert(host(pages(0, 1), Shared)));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!back.is_finished());
        vm.open();
        assert!(slow.join().unwrap().unwrap());
        assert!(back.join().unwrap().unwrap());
    });
    assert_eq!(ram.statistics().discard_backlog_bytes, 0);
}

#[test]
fn memory_that_the_host_never_takes_back_is_bounded() {
    let options = RamOptions { discard_backlog: Some(MIB), ..RamOptions::default() };
    let world = World::with(Kind::SevSnp, 16 * MIB, options);
    world.faults.fail(Operation::DiscardShared, Failure::new(libc::EIO).always());
    let mut converted = 0;
    let error = (0..64).find_map(|piece| {
        let result = world.ram.convert(host(pages(piece * 128 * 1024, 32), Private));
        converted += u64::from(result.is_ok());
        result.err()
    });
    assert!(matches!(error, Some(ConversionError::Owed { .. })), "{error:?}");
    assert!((8..=10).contains(&converted), "{converted} pieces of 128 KiB with a bound of 1 MiB");
    // Once the host works again, so does everything.
    world.faults.clear();
    world.ram.convert(host(pages(0, 4096), Private)).unwrap();
    assert_eq!(world.ram.statistics().private_bytes, 16 * MIB);
}

#[test]
fn one_request_is_bounded_as_well() {
    let options = RamOptions { discard_backlog: Some(MIB), ..RamOptions::default() };
    let world = World::with(Kind::SevSnp, 64 * MIB, options);
    world.faults.fail(Operation::DiscardShared, Failure::new(libc::EIO).always());
    let error = world.ram.convert(host(pages(0, 64 * MIB / PAGE_SIZE), Private)).unwrap_err();
    assert!(matches!(error, ConversionError::Owed { .. }), "{error:?}");
    assert!(world.ram.statistics().private_bytes <= 2 * PIECE, "{:?}", world.ram.statistics());
}

#[test]
fn a_huge_page_that_reaches_into_another_range_is_not_discarded_with_this_one() {
    let options = RamOptions { huge_page_size: Some(2 * MIB), ..RamOptions::default() };
    let mut world = World::with(Kind::Software, 4 * MIB, options);
    world.ram.make_all_private().unwrap();
    // The shared alias below 640 KiB is open to the guest whatever the state of the pages.
    world.guest_writes(0x1000, Shared, 7).unwrap();
    let page = pages(MIB, 1);
    world.ram.convert(host(page, Shared)).unwrap();
    world.ram.convert(host(page, Private)).unwrap();
    assert_eq!(world.word_if_any(Shared, 0x1000), 7);
}

#[test]
fn what_failed_is_tried_again_by_itself() {
    let world = World::new(Kind::SevSnp, 16 * MIB);
    world.faults.fail(Operation::DiscardShared, Failure::new(libc::ENOMEM));
    world.ram.convert(host(pages(0, 4), Private)).unwrap();
    assert_eq!(world.ram.statistics().discard_backlog_bytes, 4 * PAGE_SIZE);
    let start = std::time::Instant::now();
    while world.ram.statistics().discard_backlog_bytes > 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "nobody tries again");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_huge_page_goes_back_once_all_of_it_is_private() {
    let options = RamOptions { huge_page_size: Some(2 * MIB), ..RamOptions::default() };
    let (vm, ram) = guest(16 * MIB, options);
    let _opening = Opening(&vm);
    let page = |number: u64| pages(2 * MIB + number * PAGE_SIZE, 1);
    for number in (0..512).filter(|number| *number != 100) {
        ram.convert(host(page(number), Private)).unwrap();
        assert_eq!(vm.discards(), [(page(number).start(), PAGE_SIZE, false)]);
    }
    ram.convert(host(page(100), Private)).unwrap();
    assert_eq!(vm.discards(), [], "large, so behind the reply");
    assert_eq!(ram.statistics().discard_backlog_bytes, 2 * MIB);
    vm.open();
    // And none of it is used before.
    ram.convert(host(page(7), Shared)).unwrap();
    assert_eq!(vm.discards()[0].0, 2 * MIB);
}
