//! The entropy device.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use hypervisor::{PAGE_SIZE, PageState};
use vmm::config::RngConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::rng::Rng;

use crate::guest::{Guest, counter};

fn rng(source: &Path) -> Rng {
    Rng::new(&RngConfig { source: source.into() }).unwrap()
}

/// A source that gives 0, 1, 2 ...
fn source(bytes: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&(0..bytes).map(|n| n as u8).collect::<Vec<_>>()).unwrap();
    file
}

#[test]
fn buffers_are_filled_in_their_order_from_the_source() {
    let (guest, source) = (Guest::new(), source(1000));
    let (queue, buffer) = (guest.queue(0, 16), guest.pages(2));
    let mut device = rng(source.path());
    device.activate(guest.activation(0, &[&queue])).unwrap();
    assert_eq!(queue.request(&guest, &[(buffer + 4000, 200, true), (buffer, 50, true)]), 250);
    let expected: Vec<u8> = (0..250).collect();
    assert_eq!(guest.read(buffer + 4000, 200), expected[..200]);
    assert_eq!(guest.read(buffer, 50), expected[200..]);
    // What the driver lets the device only read is none of its business; what the source has no more, nobody gets.
    assert_eq!(queue.request(&guest, &[(buffer, 8, false), (buffer, 8, true)]), 8);
    assert_eq!(queue.request(&guest, &[(buffer, 4096, true)]), 742);
    assert_eq!(queue.request(&guest, &[(buffer, 4096, true)]), 0);
    assert_eq!((counter(&device, "bytes"), counter(&device, "source_errors")), (1000, 2));
}

#[test]
fn a_request_that_names_private_memory_gets_nothing_and_takes_nothing_and_the_device_goes_on() {
    let (guest, source) = (Guest::new(), source(1000));
    let (queue, buffer) = (guest.queue(0, 16), guest.pages(3));
    guest.convert(buffer + PAGE_SIZE, 1, PageState::Private);
    let mut device = rng(source.path());
    device.activate(guest.activation(0, &[&queue])).unwrap();
    let refused = guest.ram.devices().refused_accesses();
    let private = (buffer + PAGE_SIZE + 16, 16, true);
    assert_eq!(queue.request(&guest, &[private]), 0);
    assert_eq!(queue.request(&guest, &[(buffer, 16, true), private]), 0);
    assert_eq!(queue.request(&guest, &[(buffer + PAGE_SIZE - 4, 8, true)]), 0);
    assert_eq!(queue.request(&guest, &[(u64::MAX - 4, 16, true)]), 0);
    assert_eq!(guest.ram.devices().refused_accesses() - refused, 4);
    assert_eq!((counter(&device, "refused"), counter(&device, "requests")), (4, 4));
    assert_eq!(guest.read(buffer, PAGE_SIZE as usize), [0; PAGE_SIZE as usize]);
    assert_eq!(queue.request(&guest, &[(buffer, 4, true)]), 4);
    assert_eq!(guest.read(buffer, 4), [0, 1, 2, 3], "nothing of the source was taken before");
}

#[test]
fn a_request_gets_64_kib_at_most() {
    let guest = Guest::new();
    let (queue, buffer) = (guest.queue(0, 16), guest.pages(32));
    let mut device = rng(Path::new("/dev/zero"));
    device.activate(guest.activation(0, &[&queue])).unwrap();
    assert_eq!(queue.request(&guest, &[(buffer, 128 << 10, true)]), 64 << 10);
}

#[test]
fn deactivated_it_lets_go_of_all_that_it_got_and_can_begin_anew() {
    let guest = Guest::new();
    let (queue, buffer) = (guest.queue(0, 16), guest.pages(1));
    let mut device = rng(Path::new("/dev/zero"));
    let held = || (Arc::strong_count(&guest.interrupts), Arc::strong_count(guest.ram.devices()));
    let before = held();
    for _ in 0..3 {
        device.activate(guest.activation(0, &[&queue])).unwrap();
        assert_ne!(held(), before);
        assert_eq!(queue.request(&guest, &[(buffer, 4, true)]), 4);
        device.pause();
        device.resume();
        device.deactivate();
        device.deactivate();
        assert_eq!(held(), before);
        queue.reset(&guest);
    }
}

#[test]
fn a_source_that_can_not_be_read_is_an_error_that_names_it() {
    for path in ["/nonexistent/entropy", "/proc"] {
        let error = Rng::new(&RngConfig { source: path.into() }).err().unwrap().to_string();
        assert!(error.contains(path) && error.contains("source of random numbers"), "{error}");
    }
}
