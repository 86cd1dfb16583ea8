//! A conversion to private waits for guards and pins on its own pages, says so, and for nothing else.

use std::time::{Duration, Instant};

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{Private, Shared};
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::ConversionError;
use vmm::memory::guarded::RefusedAccess;

use crate::world::{Kind, World, host, pages, request};

const BASE: u64 = 1 << 20;
const SIZE: u64 = 2 << 20;

fn wait_until_converting(world: &World) {
    let start = Instant::now();
    while world.ram.statistics().converting_bytes == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "the conversion does not begin");
        std::thread::yield_now();
    }
}

#[test]
fn a_window_holds_its_own_page_and_no_other() {
    let world = World::new(Kind::Software, SIZE);
    let other = world.ram.devices().view("other");
    let window = world.view.window(GuestAddress(BASE), 8).unwrap();
    std::thread::scope(|scope| {
        let conversion = scope.spawn(|| world.ram.convert(host(pages(BASE, 1), Private)));
        wait_until_converting(&world);
        // Nobody new gets at the page; whoever holds it does.
        let error = other.read_obj::<u64>(GuestAddress(BASE)).unwrap_err();
        assert_eq!(RefusedAccess::in_error(&error).unwrap().page, BASE);
        window.write_obj(7u64, GuestAddress(BASE)).unwrap();
        // Other pages convert, both ways.
        world.ram.convert(host(pages(BASE + PAGE_SIZE, 2), Private)).unwrap();
        world.ram.convert(host(pages(BASE + PAGE_SIZE, 2), Shared)).unwrap();
        other.write_obj(1u64, GuestAddress(BASE + PAGE_SIZE)).unwrap();
        // One that asks for the page's own state is done at once, one that asks for the other waits as well.
        world.ram.convert(host(pages(BASE, 1), Shared)).unwrap();
        let second = scope.spawn(|| world.ram.convert(host(pages(BASE, 1), Private)));
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!conversion.is_finished() && !second.is_finished());
        assert_eq!(world.state(BASE), Shared);
        drop(window);
        conversion.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    assert_eq!(world.state(BASE), Private);
    assert_eq!(world.word_if_any(Shared, BASE), 0, "what the device wrote went back to the host");
    let statistics = world.ram.statistics();
    assert!(statistics.conversion_waits >= 1, "{statistics:?}");
    let said = format!("waiting {} device", pages(BASE, 1));
    assert!(world.events.lock().unwrap().contains(&said), "{:?}", world.events);
}

#[test]
fn a_pin_holds_its_own_pages() {
    let world = World::new(Kind::Software, SIZE);
    let pin = world.view.pin(&[(GuestAddress(BASE), 16)]).unwrap();
    std::thread::scope(|scope| {
        let conversion = scope.spawn(|| world.ram.convert(host(pages(BASE, 1), Private)));
        wait_until_converting(&world);
        world.ram.convert(host(pages(BASE + PAGE_SIZE, 1), Private)).unwrap();
        assert!(!conversion.is_finished());
        drop(pin);
        conversion.join().unwrap().unwrap();
    });
}

#[test]
fn a_machine_that_ends_waits_for_no_device_and_leaves_the_pages_as_they_were() {
    let world = World::new(Kind::Software, SIZE);
    let window = world.view.window(GuestAddress(BASE), 8).unwrap();
    std::thread::scope(|scope| {
        let conversion = scope.spawn(|| world.ram.convert(host(pages(BASE, 1), Private)));
        let other = scope.spawn(|| world.ram.convert(host(pages(BASE, 1), Private)));
        wait_until_converting(&world);
        world.ram.end_conversions();
        for thread in [conversion, other] {
            let error = thread.join().unwrap().unwrap_err();
            assert!(matches!(error, ConversionError::Stopped), "{error:?}");
        }
    });
    drop(window);
    assert_eq!(world.state(BASE), Shared);
    assert_eq!(world.attribute(BASE), Some(Shared));
    world.device_writes(BASE, 1).unwrap();
}

#[test]
fn a_machine_that_pauses_waits_for_no_device_and_the_same_conversion_is_made_later() {
    let world = World::new(Kind::Software, SIZE);
    let window = world.view.window(GuestAddress(BASE), 8).unwrap();
    let guests = |range, to| request(range, to, ConversionKind::Explicit);
    std::thread::scope(|scope| {
        // One waits for the device, the other for that one.
        let kinds = [ConversionKind::Host, ConversionKind::Explicit];
        let waiting = kinds.map(|kind| {
            let ram = world.ram.clone();
            scope.spawn(move || ram.convert(request(pages(BASE, 1), Private, kind)))
        });
        wait_until_converting(&world);
        world.ram.interrupt_conversions();
        for thread in waiting {
            let error = thread.join().unwrap().unwrap_err();
            assert!(matches!(error, ConversionError::Interrupted) && !error.is_fatal(), "{error:?}");
        }
    });
    assert_eq!((world.state(BASE), world.attribute(BASE)), (Shared, Some(Shared)));
    world.device_writes(BASE, 1).unwrap();
    // The guest's own conversions don't even begin; the operator's do, as long as they wait for nobody.
    let other = pages(BASE + 2 * PAGE_SIZE, 1);
    let error = world.ram.convert(guests(other, Private)).unwrap_err();
    assert!(matches!(error, ConversionError::Interrupted), "{error:?}");
    assert!(world.ram.convert(host(other, Private)).unwrap());
    assert_eq!(world.ram.statistics().conversions_failed, 0);

    world.ram.allow_conversions();
    drop(window);
    assert!(world.ram.convert(guests(pages(BASE, 1), Private)).unwrap());
    assert_eq!(world.state(BASE), Private);
}
