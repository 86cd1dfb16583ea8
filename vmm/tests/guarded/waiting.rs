//! What a conversion waits for, and what it doesn't.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hypervisor::{PAGE_SIZE, PageState};
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};
use vmm::memory::guarded::{DeviceView, LOOK_INTERVAL, SliceGuard, WaitForGuards, Waiting};

use crate::memory::{Memory, pages};

const PAGES: u64 = 200;

/// Long enough for a conversion that waits for nothing.
const MOMENT: Duration = Duration::from_millis(100);

fn memory() -> Memory {
    Memory::new(&[(0, PAGES, 0, true)])
}

fn at(page: u64) -> GuestAddress {
    GuestAddress(page * PAGE_SIZE)
}

fn slice(view: &DeviceView, page: u64) -> VolatileSlice<'_, SliceGuard<'_>> {
    view.get_slices(at(page), 8, Permissions::Read).unwrap().next().unwrap().unwrap()
}

/// Converts a page, and checks that this ends after `end_guard` and not before.
#[track_caller]
fn waits_until(memory: &mut Memory, page: u64, end_guard: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let converter = scope.spawn(|| {
            memory.make_private(pages(page, page + 1));
            done.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(MOMENT);
        assert!(!done.load(Ordering::SeqCst), "the conversion did not wait");
        end_guard();
        converter.join().unwrap();
    });
    assert_eq!(memory.device.guards().plane().state(page), Some(PageState::Private));
}

#[test]
fn for_a_slice_and_all_its_parts() {
    let mut memory = memory();
    let view = memory.device.view("device");
    let whole = slice(&view, 5);
    let part = whole.subslice(2, 4).unwrap();
    let copy = part.clone();
    drop(whole);
    drop(part);
    waits_until(&mut memory, 5, move || drop(copy));
}

#[test]
fn for_a_window_and_for_a_pin() {
    let mut memory = memory();
    let view = memory.device.view("device");
    let window = view.window(at(5), 2 * PAGE_SIZE as usize).unwrap();
    waits_until(&mut memory, 6, || drop(window));
    let pin = view.pin(&[(at(0), 8), (at(60), 100 * PAGE_SIZE as usize)]).unwrap();
    waits_until(&mut memory, 159, || drop(pin));
}

#[test]
fn for_guards_beyond_the_slots() {
    let mut memory = memory();
    let view = memory.device.view("device");
    let mut slices: Vec<_> = (0..100).map(|page| slice(&view, page)).collect();
    let copy = slices[99].clone();
    drop(slices.split_off(50));
    memory.make_private(pages(50, 99));
    waits_until(&mut memory, 99, || drop(copy));
    // The places are free again, and taken again.
    slices.extend((150..160).map(|page| slice(&view, page)));
    waits_until(&mut memory, 155, || drop(slices));
}

#[test]
fn for_any_number_of_guards_each_found_at_once() {
    // More than a queue has descriptors, all held by one device, and again.
    const GUARDS: usize = 40_000;
    let mut memory = memory();
    let view = memory.device.view("device");
    let start = Instant::now();
    for _ in 0..2 {
        let held: Vec<_> = (0..GUARDS).map(|n| slice(&view, n as u64 % 100)).collect();
        assert!(memory.device.guards().pin(&[pages(0, PAGES)], view.owner()).is_ok());
        let last = held.into_iter().next_back();
        waits_until(&mut memory, (GUARDS as u64 - 1) % 100, || drop(last));
        memory.writer.share(pages(99, 100)).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn not_for_guards_on_other_pages() {
    let mut memory = memory();
    let view = memory.device.view("device");
    let window = view.window(at(10), PAGE_SIZE as usize).unwrap();
    let pin = view.pin(&[(at(20), PAGE_SIZE as usize)]).unwrap();
    let held: Vec<_> = (100..120).map(|page| slice(&view, page)).collect();
    for page in [0, 9, 11, 19, 21, 99, 120, 199] {
        memory.make_private(pages(page, page + 1));
    }
    memory.make_private(pages(121, 199));
    drop((window, pin, held));
}

#[test]
fn not_for_a_device_that_is_gone_nor_for_one_that_is_refused() {
    let mut memory = memory();
    let view = memory.device.view("device");
    std::mem::forget(slice(&view, 3));
    (0..10).for_each(|page| std::mem::forget(slice(&view, page)));
    drop(view);
    memory.make_private(pages(0, 10));
    let view = memory.device.view("device");
    assert!(view.read_obj::<u64>(at(3)).is_err());
    memory.writer.share(pages(3, 4)).unwrap();
    assert!(view.read_obj::<u64>(at(3)).is_ok());
    memory.make_private(pages(3, 4));
}

#[test]
fn for_a_guard_that_was_forgotten_until_its_device_is_gone() {
    let mut memory = memory();
    for forgotten in [1, 100] {
        let view = memory.device.view("device");
        (0..forgotten).for_each(|_| std::mem::forget(slice(&view, 3)));
        waits_until(&mut memory, 3, move || drop(view));
        memory.writer.share(pages(3, 4)).unwrap();
    }
}

#[test]
fn a_long_wait_is_reported_again_and_again_and_can_be_given_up() {
    for by_pin in [false, true] {
        let mut memory = memory();
        let view = memory.device.view("slow disk");
        let window = (!by_pin).then(|| view.window(at(7), 1).unwrap());
        let pin = by_pin.then(|| view.pin(&[(at(7), 1)]).unwrap());
        let revoked = memory.writer.revoke(pages(4, 9)).unwrap();
        let start = Instant::now();
        let mut reports: Vec<Waiting> = Vec::new();
        let given_up = revoked.quiesce(&WaitForGuards, memory.device.guards(), &mut |waiting| {
            reports.push(waiting.clone());
            if reports.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let took = start.elapsed();
        let revoked = given_up.unwrap_err();
        assert!(took >= 2 * LOOK_INTERVAL, "{took:?}");
        for (look, report) in (1..).zip(&reports) {
            assert_eq!((report.range, &*report.owner), (pages(4, 9), "slow disk"));
            assert!(report.waited >= LOOK_INTERVAL * look, "{report:?}");
        }
        assert!(view.read_obj::<u64>(at(7)).is_err(), "new guards are refused meanwhile");
        memory.writer.restore(revoked);
        assert!(view.read_obj::<u64>(at(7)).is_ok());
        drop((window, pin));
    }
}
