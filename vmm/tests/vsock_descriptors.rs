//! Programs of the host's that connect while no descriptor is left. A program of its own: it takes them all.

#![cfg(test)]

#[path = "virtio/driver.rs"]
mod driver;
#[path = "virtio/guest.rs"]
mod guest;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::span;
use vmm::config::VsockConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::vsock::Vsock;
use vmm::devices::virtio::vsock::connections::ACCEPT_AGAIN;
use vmm::devices::virtio::vsock::packet::{HEADER, Header, op};

use guest::{Guest, counter, wait_until};

/// Warnings of the whole program.
static WARNINGS: AtomicU64 = AtomicU64::new(0);

/// Counts them.
struct Log;

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn event(&self, _: &tracing::Event<'_>) {
        WARNINGS.fetch_add(1, Ordering::SeqCst);
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// No new descriptor, for as long as it lives.
struct NoDescriptors(Rlimit);

impl NoDescriptors {
    fn new() -> Self {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
        Self(before)
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

#[test]
fn programs_that_find_no_descriptor_left_are_let_in_later_whatever_the_guest_does() {
    tracing::subscriber::set_global_default(Log).unwrap();
    let (guest, directory) = (Guest::new(), tempfile::tempdir().unwrap());
    let config = VsockConfig { id: None, cid: 42, socket: directory.path().join("socket") };
    let mut device = Vsock::new(&config).unwrap();
    let (receive, transmit) = (guest.queue(0, 64), guest.queue(1, 64));
    let (buffer, packet) = (guest.pages(1), guest.pages(1));
    let start = Instant::now();
    for round in 1..3 {
        // Another driver: what was told before is not told again.
        device.deactivate();
        [&receive, &transmit].iter().for_each(|queue| queue.reset(&guest));
        device.activate(guest.activation(0, &[&receive, &transmit])).unwrap();
        (0..8).for_each(|_| _ = receive.offer(&guest, &[(buffer, 4096, true)]));
        receive.notify();
        let request = |port: u32| {
            assert_eq!(receive.wait(&guest).1, HEADER as u32);
            let header = Header::from_bytes(&guest.read(buffer, HEADER).try_into().unwrap());
            assert_eq!((header.op, header.dst_port), (op::REQUEST, port));
        };
        // So all that happened before is done with.
        let mut first = UnixStream::connect(&config.socket).unwrap();
        first.write_all(b"CONNECT 1\n").unwrap();
        request(1);

        device.pause();
        let mut second = UnixStream::connect(&config.socket).unwrap();
        second.write_all(b"CONNECT 2\n").unwrap();
        let (asked, since) = (counter(&device, "postponed"), Instant::now());
        let taken = NoDescriptors::new();
        device.resume();
        // The guest does nothing.
        wait_until(|| counter(&device, "postponed") >= asked + 5);
        // It does a lot.
        for _ in 0..200 {
            transmit.request(&guest, &[(packet, 1, false)]);
        }
        let asked = counter(&device, "postponed") - asked;
        assert!(asked <= 1 + (since.elapsed().as_millis() / ACCEPT_AGAIN.as_millis()) as u64, "asked {asked} times");
        let told = WARNINGS.load(Ordering::SeqCst);
        assert!((1..=1 + start.elapsed().as_secs() / 60).contains(&told), "told {told} times");
        drop(taken);
        request(2);
        assert_eq!(counter(&device, "failed"), 200 * round);
    }
}
