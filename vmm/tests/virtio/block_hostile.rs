//! Requests to a disk that no decent driver makes: each fails on its own, touches nothing, and the disk goes on.

use std::os::unix::fs::FileExt;

use hypervisor::PAGE_SIZE;
use hypervisor::PageState::Private;
use proptest::prelude::*;
use virtio_bindings::virtio_blk::*;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::block::Block;

use crate::block::{FLUSH, Request, disk, image};
use crate::driver::{INDIRECT, NEXT, Queue, WRITE};
use crate::guest::{Guest, counter, wait_until};

/// A disk of 64 KiB.
fn world() -> (Guest, Queue, Block, tempfile::NamedTempFile) {
    let (guest, image) = (Guest::new(), image(64 << 10));
    let mut device = Block::new(&disk(image.path())).unwrap();
    let queue = guest.queue(0, 128);
    device.activate(guest.activation(FLUSH, &[&queue])).unwrap();
    (guest, queue, device, image)
}

#[track_caller]
fn works(guest: &Guest, queue: &Queue) {
    let (request, data) = (Request::new(guest, VIRTIO_BLK_T_IN, 7), guest.pages(1));
    assert_eq!(request.make(guest, queue, &[(data, 512, true)]), VIRTIO_BLK_S_OK);
    assert_eq!(guest.read(data, 512), [7; 512]);
}

#[test]
fn private_buffers_fail_their_request_only() {
    let (guest, queue, device, image) = world();
    let (shared, private) = (guest.pages(1), guest.pages(1));
    guest.convert(private, 1, Private);
    let request = Request::new(&guest, VIRTIO_BLK_T_IN, 0);
    assert_eq!(request.make(&guest, &queue, &[(shared, 512, true), (private, 512, true)]), VIRTIO_BLK_S_IOERR);
    request.set(&guest, VIRTIO_BLK_T_OUT, 0);
    assert_eq!(request.make(&guest, &queue, &[(private, 512, false)]), VIRTIO_BLK_S_IOERR);
    // The header, and then the status.
    assert_eq!(queue.request(&guest, &[(private, 16, false), (shared, 512, true), request.status_byte()]), 1);
    assert_eq!(request.status(&guest), VIRTIO_BLK_S_IOERR);
    request.set(&guest, VIRTIO_BLK_T_IN, 0);
    assert_eq!(queue.request(&guest, &[request.header(), (shared, 512, true), (private, 1, true)]), 0);
    assert_eq!((counter(&device, "failed"), counter(&device, "refused")), (4, 4));
    assert_eq!(guest.ram.devices().refused_accesses(), 4);
    let mut first = [1; 512];
    image.as_file().read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 512]);
    works(&guest, &queue);
}

#[test]
fn places_and_sizes_outside_of_the_disk_fail() {
    let (guest, queue, device, _image) = world();
    let data = guest.pages(2);
    let cases =
        [(128, 512), (127, 1024), (u64::MAX, 512), (u64::MAX / 512, 1024), (1 << 55, 512), (0, 511), (0, 513), (0, 1)];
    for (sector, size) in cases {
        for (kind, write) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
            let request = Request::new(&guest, kind, sector);
            assert_eq!(request.make(&guest, &queue, &[(data, size, write)]), VIRTIO_BLK_S_IOERR, "{sector} {size}");
        }
    }
    assert_eq!(counter(&device, "failed"), 2 * cases.len() as u64);
    for kind in [2, 16, 0x8000_0000, u32::MAX] {
        let request = Request::new(&guest, kind, 0);
        assert_eq!(request.make(&guest, &queue, &[(data, 512, true)]), VIRTIO_BLK_S_UNSUPP);
    }
    works(&guest, &queue);
}

#[test]
fn chains_of_bad_shape_fail() {
    let (guest, queue, device, _image) = world();
    let request = Request::new(&guest, VIRTIO_BLK_T_IN, 0);
    let (header, status, data) = (request.header().0, request.status_byte().0, guest.pages(1));
    let table = guest.pages(1);
    let chains: [&[(u64, u32, u16, u16)]; 9] = [
        // In a circle.
        &[(header, 16, NEXT, 101), (data, 512, WRITE | NEXT, 100)],
        // Out of the table.
        &[(header, 16, NEXT, 101), (data, 512, WRITE | NEXT, 128)],
        // Nothing but a header; nothing but a status; half a header.
        &[(header, 16, 0, 0)],
        &[(status, 1, WRITE, 0)],
        &[(header, 8, NEXT, 101), (status, 1, WRITE, 0)],
        // No bytes at all.
        &[(header, 0, NEXT, 101), (status, 0, WRITE, 0)],
        // What is readable behind what is writable.
        &[(status, 1, WRITE | NEXT, 101), (header, 16, 0, 0)],
        // Beyond all addresses.
        &[(header, 16, NEXT, 101), (u64::MAX - 100, 512, WRITE | NEXT, 102), (status, 1, WRITE, 0)],
        // A table in a table.
        &[(table, 16, INDIRECT, 0)],
    ];
    for (number, chain) in chains.iter().enumerate() {
        for (index, descriptor) in (100..).zip(*chain) {
            queue.write_descriptor(&guest, index, *descriptor);
        }
        guest.write(table, &[table.to_le_bytes().as_slice(), &16u32.to_le_bytes(), &[4, 0, 0, 0]].concat());
        request.set(&guest, VIRTIO_BLK_T_IN, 0);
        queue.make_available(&guest, 100);
        queue.notify();
        assert_eq!(queue.wait(&guest).0, 100);
        assert_ne!(request.status(&guest), VIRTIO_BLK_S_OK, "chain {number}");
        assert_eq!(counter(&device, "failed"), number as u64 + 1);
    }
    works(&guest, &queue);
}

#[test]
fn more_data_than_a_request_may_have_fails() {
    let (guest, image) = (Guest::new(), tempfile::NamedTempFile::new().unwrap());
    image.as_file().set_len(1 << 30).unwrap();
    let mut device = Block::new(&disk(image.path())).unwrap();
    let queue = guest.queue(0, 128);
    device.activate(guest.activation(FLUSH, &[&queue])).unwrap();
    let (table, data) = (guest.pages(16), guest.pages(32));
    let request = Request::new(&guest, VIRTIO_BLK_T_IN, 0);
    // The most that may be; one more; and more buffers than are looked at, whose last byte then stands for the status.
    for (count, status, mark) in [(254, VIRTIO_BLK_S_OK, 0), (255, VIRTIO_BLK_S_IOERR, 9), (1500, 0xff, 1)] {
        let mut descriptors = vec![(request.header().0, 16u32, NEXT)];
        descriptors.extend(vec![(data, 32 * PAGE_SIZE as u32, WRITE | NEXT); count]);
        descriptors.push((request.status_byte().0, 1, WRITE));
        for (index, (gpa, length, flags)) in (0u16..).zip(&descriptors) {
            let next = (index + 1).to_le_bytes();
            let bytes = [gpa.to_le_bytes().as_slice(), &length.to_le_bytes(), &flags.to_le_bytes(), &next].concat();
            guest.write(table + 16 * u64::from(index), &bytes);
        }
        request.set(&guest, VIRTIO_BLK_T_IN, 0);
        guest.write(data + 32 * PAGE_SIZE - 1, &[9]);
        queue.write_descriptor(&guest, 0, (table, 16 * descriptors.len() as u32, INDIRECT, 0));
        queue.make_available(&guest, 0);
        queue.notify();
        queue.wait(&guest);
        assert_eq!((request.status(&guest), guest.read(data + 32 * PAGE_SIZE - 1, 1)), (status, vec![mark]), "{count}");
    }
    assert_eq!(counter(&device, "read_ops"), 1);
}

#[test]
fn rings_that_make_no_sense_are_left_alone() {
    let (guest, queue, device, _image) = world();
    works(&guest, &queue);
    // More than fit.
    queue.set_available(&guest, 1000);
    queue.notify();
    wait_until(|| counter(&device, "queue_faults") > 0);
    let faults = counter(&device, "queue_faults");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(counter(&device, "queue_faults") < faults + 10, "it asks again and again");
    queue.set_available(&guest, 1);
    works(&guest, &queue);
    // A head that is none is used with nothing in it, or not at all; what comes behind it works.
    queue.make_available(&guest, 4000);
    queue.notify();
    wait_until(|| counter(&device, "failed") == 1);
    works(&guest, &queue);
}

#[test]
fn rings_that_became_private_are_left_alone() {
    let (guest, queue, mut device, _image) = world();
    works(&guest, &queue);
    let page = queue.used() / PAGE_SIZE * PAGE_SIZE;
    let request = Request::new(&guest, VIRTIO_BLK_T_FLUSH, 0);
    queue.offer(&guest, &[request.header(), request.status_byte()]);
    guest.convert(page, 1, Private);
    queue.notify();
    wait_until(|| counter(&device, "queue_faults") > 0);
    guest.convert(page, 1, hypervisor::PageState::Shared);
    device.deactivate();
    queue.reset(&guest);
    device.activate(guest.activation(FLUSH, &[&queue])).unwrap();
    works(&guest, &queue);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_chains_are_the_disk_goes_on(
        chains in prop::collection::vec(
            (prop::collection::vec((0..6u64, -20..20i64, any::<prop::sample::Index>(), 0..8u16, 0..140u16), 128), 0..16u32, 0..140u64),
            1..4,
        ),
    ) {
        let (guest, queue, mut device, image) = world();
        let (shared, private) = (guest.pages(4), guest.pages(2));
        guest.convert(private, 2, Private);
        let spots = [shared, shared + PAGE_SIZE, shared + 4 * PAGE_SIZE, private, u64::MAX, 1 << 40];
        let lengths = [0, 1, 15, 16, 17, 20, 512, 513, 1024, 4096, 65536, u32::MAX];
        for (descriptors, kind, sector) in chains {
            let header = [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat();
            guest.write(shared, &header);
            for (index, (spot, off, length, flags, next)) in (0..).zip(descriptors) {
                let gpa = if index == 0 { shared } else { spots[spot as usize].saturating_add_signed(off) };
                let next = if next > 130 { next } else { index + 1 };
                queue.write_descriptor(&guest, index, (gpa, *length.get(&lengths), flags, next));
            }
            let ended = || {
                let ways = ["read_ops", "write_ops", "flush_ops", "discard_ops", "failed"];
                ways.map(|name| counter(&device, name)).iter().sum::<u64>()
            };
            let before = ended();
            queue.make_available(&guest, 0);
            queue.notify();
            wait_until(|| queue.poll(&guest).is_some());
            // A GET_ID that succeeds is not counted.
            prop_assert!(ended() - before <= 1, "one chain is several requests");
        }
        prop_assert_eq!(image.as_file().metadata().unwrap().len(), 64 << 10, "the image has another size");
        let request = Request::new(&guest, VIRTIO_BLK_T_FLUSH, 0);
        // The table is the driver's again.
        queue.reset(&guest);
        device.deactivate();
        device.activate(guest.activation(FLUSH, &[&queue])).unwrap();
        prop_assert_eq!(request.make(&guest, &queue, &[]), VIRTIO_BLK_S_OK);
    }
}
