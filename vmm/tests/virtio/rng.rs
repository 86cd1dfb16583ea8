//! The entropy device.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hypervisor::{PAGE_SIZE, PageState};
use rustix::fs::{FileType, Mode};
use vmm::config::RngConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::rng::{ASK_AGAIN, Rng};

use crate::driver::Queue;
use crate::guest::{Guest, counter, wait_until};

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
    assert_eq!((counter(&device, "bytes"), counter(&device, "source_errors")), (1000, 1));
}

/// Makes two requests available, and waits until a source that has nothing was asked a few times. Returns their heads.
fn wait_in_vain(guest: &Guest, queue: &Queue, device: &Rng, buffer: u64) -> [u16; 2] {
    let heads = [(); 2].map(|()| queue.offer(guest, &[(buffer, 16, true)]));
    queue.notify();
    wait_until(|| counter(device, "source_errors") >= 3);
    // No driver hears of a request that got nothing (virtio 1.3, 5.4.6): Linux would never ask again.
    assert_eq!((queue.pending(guest), counter(device, "requests")), (0, 0));
    heads
}

#[test]
fn requests_wait_for_a_file_that_has_nothing_yet() {
    let (guest, mut source) = (Guest::new(), source(0));
    let (queue, buffer) = (guest.queue(0, 16), guest.pages(1));
    let mut device = rng(source.path());
    device.activate(guest.activation(0, &[&queue])).unwrap();
    let [first, second] = wait_in_vain(&guest, &queue, &device, buffer);
    source.write_all(&[7; 20]).unwrap();
    assert_eq!(queue.wait(&guest), (first, 16));
    assert_eq!(queue.wait(&guest), (second, 4));
    assert_eq!(guest.read(buffer, 16), [7; 16]);
    assert_eq!((counter(&device, "requests"), counter(&device, "bytes")), (2, 20));
}

#[test]
fn requests_wait_for_a_pipe_whose_writers_come_and_go_and_nobody_spins() {
    let (guest, directory) = (Guest::new(), tempfile::tempdir().unwrap());
    let (queue, buffer) = (guest.queue(0, 16), guest.pages(1));
    let path = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut device = rng(&path);
    device.activate(guest.activation(0, &[&queue])).unwrap();
    let start = Instant::now();
    // Nobody has the other end. It is asked for what the queue had from the start, for what was notified, and by the timer.
    let [first, _] = wait_in_vain(&guest, &queue, &device, buffer);
    let asked = counter(&device, "source_errors");
    assert!(asked <= 2 + (start.elapsed().as_millis() / ASK_AGAIN.as_millis()) as u64, "asked {asked} times");
    // Somebody has, and has nothing; a pause and another notification change nothing.
    let mut writer = File::options().write(true).open(&path).unwrap();
    device.pause();
    device.resume();
    queue.notify();
    let asked = counter(&device, "source_errors");
    wait_until(|| counter(&device, "source_errors") >= asked + 3);
    assert_eq!(queue.pending(&guest), 0);
    writer.write_all(&[8; 5]).unwrap();
    assert_eq!(queue.wait(&guest), (first, 5));
    drop(writer);
    // Another driver has other requests.
    device.deactivate();
    queue.reset(&guest);
    device.activate(guest.activation(0, &[&queue])).unwrap();
    let head = queue.offer(&guest, &[(buffer, 4, true)]);
    queue.notify();
    File::options().write(true).open(&path).unwrap().write_all(&[9; 4]).unwrap();
    assert_eq!(queue.wait(&guest), (head, 4));
    assert_eq!(guest.read(buffer, 5), [9, 9, 9, 9, 8]);
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
