//! Disks that do what drivers ask for.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{Private, Shared};
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::*;
use vmm::config::DiskConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::block::Block;

use crate::driver::{Buffer, Queue};
use crate::guest::{Guest, config, counter, resources, wait_until};

pub const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// An image of so many bytes, each sector full of its number.
pub fn image(size: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..size).map(|at| (at / 512) as u8).collect();
    file.write_all(&bytes).unwrap();
    file
}

pub fn disk(path: &Path) -> DiskConfig {
    DiskConfig {
        id: Some("disk7".into()),
        path: path.to_owned(),
        readonly: false,
        queues: 1,
        queue_size: 128,
        serial: Some("serial-1".into()),
    }
}

/// A request of the driver's, with its header and status on a page of their own.
pub struct Request(u64);

impl Request {
    pub fn new(guest: &Guest, kind: u32, sector: u64) -> Self {
        let page = guest.pages(1);
        let request = Self(page);
        request.set(guest, kind, sector);
        request
    }

    pub fn set(&self, guest: &Guest, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        guest.write(self.0, &header);
        guest.write(self.0 + 16, &[0xff]);
    }

    pub fn header(&self) -> Buffer {
        (self.0, 16, false)
    }

    pub fn status_byte(&self) -> Buffer {
        (self.0 + 16, 1, true)
    }

    pub fn status(&self, guest: &Guest) -> u32 {
        guest.read(self.0 + 16, 1)[0].into()
    }

    /// Makes it with these buffers of data. Returns its status.
    #[track_caller]
    pub fn make(&self, guest: &Guest, queue: &Queue, data: &[Buffer]) -> u32 {
        let mut buffers = vec![self.header()];
        buffers.extend(data);
        buffers.push(self.status_byte());
        queue.request(guest, &buffers);
        self.status(guest)
    }
}

/// A disk that is in use.
struct World {
    guest: Guest,
    queue: Queue,
    device: Block,
    image: NamedTempFile,
}

impl World {
    fn new(size: u64, features: u64) -> Self {
        Self::with(size, features, |_| {})
    }

    fn with(size: u64, features: u64, change: impl FnOnce(&mut DiskConfig)) -> Self {
        let (guest, image) = (Guest::new(), image(size));
        let mut config = disk(image.path());
        change(&mut config);
        let mut device = Block::new(&config).unwrap();
        let queue = guest.queue(0, 128);
        device.activate(guest.activation(features, &[&queue])).unwrap();
        Self { guest, queue, device, image }
    }

    #[track_caller]
    fn request(&self, kind: u32, sector: u64, data: &[Buffer]) -> u32 {
        Request::new(&self.guest, kind, sector).make(&self.guest, &self.queue, data)
    }

    fn on_disk(&self, offset: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.image.as_file().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

#[test]
fn data_goes_to_the_disk_and_comes_back() {
    let world = World::new(1 << 20, FLUSH);
    let (guest, data) = (&world.guest, world.guest.pages(4));
    // In pieces that are no sectors.
    let pieces = |write| [(data, 100, write), (data + 5000, 924, write), (data + 0x3000, 512, write)];
    assert_eq!(world.request(VIRTIO_BLK_T_IN, 5, &pieces(true)), VIRTIO_BLK_S_OK);
    assert_eq!(guest.read(data, 101), [[5; 100].as_slice(), &[0]].concat());
    assert_eq!(guest.read(data + 5000, 924), [vec![5; 412], vec![6; 512]].concat());
    assert_eq!(guest.read(data + 0x3000, 512), [7; 512]);

    guest.write(data, &[0xa1; 100]);
    guest.write(data + 5000, &[0xa2; 924]);
    guest.write(data + 0x3000, &[0xa3; 512]);
    assert_eq!(world.request(VIRTIO_BLK_T_OUT, 9, &pieces(false)), VIRTIO_BLK_S_OK);
    assert_eq!(world.on_disk(8 * 512, 512), [8; 512]);
    assert_eq!(world.on_disk(9 * 512, 1536), [vec![0xa1; 100], vec![0xa2; 924], vec![0xa3; 512]].concat());
    assert_eq!(world.on_disk(12 * 512, 512), [12; 512]);
    assert_eq!(world.request(VIRTIO_BLK_T_FLUSH, 0, &[]), VIRTIO_BLK_S_OK);
    let counters = ["read_ops", "read_bytes", "write_ops", "write_bytes", "flush_ops", "failed", "queue_faults"];
    assert_eq!(counters.map(|name| counter(&world.device, name)), [1, 1536, 1, 1536, 1, 0, 0]);
}

#[test]
fn what_the_driver_is_told_of_the_disk() {
    let world = World::with(100 * 512 + 17, FLUSH, |disk| disk.queues = 3);
    let device = &world.device;
    assert_eq!(device.device_type(), 2);
    assert_eq!(device.queue_sizes(), [128; 3]);
    assert_eq!(config(device, 0, 8), 100u64.to_le_bytes());
    assert_eq!(config(device, 12, 4), 126u32.to_le_bytes());
    assert_eq!(config(device, 34, 2), 3u16.to_le_bytes());
    assert_eq!(config(device, 58, 4), [0; 4]);
    assert_eq!(config(device, u64::MAX, 4), [0; 4]);
    let has = |bit| device.features() >> bit & 1 == 1;
    assert!(has(VIRTIO_BLK_F_MQ) && has(VIRTIO_BLK_F_FLUSH) && has(VIRTIO_BLK_F_DISCARD) && !has(VIRTIO_BLK_F_RO));

    let data = world.guest.pages(1);
    assert_eq!(world.request(VIRTIO_BLK_T_GET_ID, 0, &[(data, 20, true)]), VIRTIO_BLK_S_OK);
    assert_eq!(world.guest.read(data, 20), b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0");
    // The rest behind the last sector is none of the disk.
    assert_eq!(world.request(VIRTIO_BLK_T_IN, 99, &[(data, 512, true)]), VIRTIO_BLK_S_OK);
    assert_eq!(world.request(VIRTIO_BLK_T_IN, 100, &[(data, 512, true)]), VIRTIO_BLK_S_IOERR);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let world = World::new(1 << 20, FLUSH);
    let blocks = || std::fs::metadata(world.image.path()).unwrap().blocks();
    let (before, data) = (blocks(), world.guest.pages(1));
    let range = |at: u64, sector: u64, count: u32, flags: u32| {
        let bytes = [sector.to_le_bytes().as_slice(), &count.to_le_bytes(), &flags.to_le_bytes()].concat();
        world.guest.write(data + 16 * at, &bytes);
    };
    range(0, 0, 64, 0);
    range(1, 256, 64, 0);
    assert_eq!(world.request(VIRTIO_BLK_T_DISCARD, 0, &[(data, 32, false)]), VIRTIO_BLK_S_OK);
    assert!(blocks() < before, "nothing was given back");
    assert_eq!(world.on_disk(256 * 512, 1), [0]);
    assert_eq!(world.on_disk(64 * 512, 1), [64]);
    for flags in [0, 1] {
        range(0, 100, 8, flags);
        world.image.as_file().write_all_at(&[9; 4096], 100 * 512).unwrap();
        assert_eq!(world.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(data, 16, false)]), VIRTIO_BLK_S_OK);
        assert_eq!(world.on_disk(99 * 512, 6 * 1024)[510..514], [99, 99, 0, 0]);
        assert_eq!(world.on_disk(100 * 512, 4096), [0; 4096]);
        assert_eq!(world.on_disk(108 * 512, 1), [108]);
    }
    // A range outside of the disk, unknown flags, and half a range: nothing is touched.
    for (sector, count, flags, size, status) in [
        (2040, 16, 0, 32, VIRTIO_BLK_S_IOERR),
        (u64::MAX, 2, 0, 32, VIRTIO_BLK_S_IOERR),
        (300, 2, 2, 32, VIRTIO_BLK_S_UNSUPP),
        (300, 2, 0, 24, VIRTIO_BLK_S_IOERR),
    ] {
        range(0, 400, 8, 0);
        range(1, sector, count, flags);
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(world.request(kind, 0, &[(data, size, false)]), status, "{sector} {count} {flags} {size}");
        }
        assert_eq!(world.on_disk(400 * 512, 1), [400u64 as u8]);
    }
}

#[test]
fn a_read_only_disk_is_read_only() {
    let world = World::with(1 << 16, FLUSH, |disk| disk.readonly = true);
    let data = world.guest.pages(1);
    assert_eq!(world.device.features() >> VIRTIO_BLK_F_RO & 1, 1);
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(world.request(kind, 0, &[(data, 512, false)]), VIRTIO_BLK_S_IOERR);
    }
    assert_eq!(world.request(VIRTIO_BLK_T_IN, 3, &[(data, 512, true)]), VIRTIO_BLK_S_OK);
    assert_eq!(world.guest.read(data, 1), [3]);
    assert_eq!(world.on_disk(0, 1), [0]);
}

#[test]
fn an_image_in_use_is_refused_and_free_again_afterwards() {
    let image = image(4096);
    let writer = disk(image.path());
    let reader = DiskConfig { readonly: true, ..writer.clone() };
    let first = Block::new(&writer).unwrap();
    for other in [&writer, &reader] {
        let error = Block::new(other).err().unwrap().to_string();
        assert!(error.contains("in use") && error.contains(&*image.path().to_string_lossy()), "{error}");
    }
    drop(first);
    let readers = [Block::new(&reader).unwrap(), Block::new(&reader).unwrap()];
    assert!(Block::new(&writer).is_err());
    drop(readers);
    Block::new(&writer).unwrap();
}

#[test]
fn what_is_no_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let small = image(511);
    let good = image(512);
    let long = DiskConfig { serial: Some("x".repeat(21)), ..disk(good.path()) };
    let odd = DiskConfig { queue_size: 100, ..disk(good.path()) };
    let none = DiskConfig { queues: 0, ..disk(good.path()) };
    let missing = disk(&directory.path().join("missing"));
    let readable = DiskConfig { readonly: true, ..disk(directory.path()) };
    let cases = [
        (disk(directory.path()), "cannot open disk image"),
        (readable, "neither a file nor a block device"),
        (disk(&pipe), "neither a file nor a block device"),
        (disk(small.path()), "has 511 bytes"),
        (long, "more than 20 bytes"),
        (odd, "power of two"),
        (none, "no queues"),
        (missing, "cannot open disk image"),
    ];
    for (config, expected) in cases {
        let error = Block::new(&config).err().unwrap_or_else(|| panic!("{config:?} is taken")).to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(config(&Block::new(&disk(good.path())).unwrap(), 0, 8), 1u64.to_le_bytes());
}

#[test]
fn queues_work_beside_each_other() {
    let (guest, image) = (Guest::new(), image(1 << 20));
    let mut device = Block::new(&DiskConfig { queues: 4, ..disk(image.path()) }).unwrap();
    let queues: Vec<_> = (0..4).map(|index| guest.queue(index, 64)).collect();
    device.activate(guest.activation(FLUSH, &queues.iter().collect::<Vec<_>>())).unwrap();
    let requests: Vec<_> = (0..40).map(|n| (Request::new(&guest, VIRTIO_BLK_T_IN, n), guest.pages(1), n)).collect();
    for (request, data, n) in &requests {
        let queue = &queues[*n as usize % 4];
        queue.offer(&guest, &[request.header(), (*data, 512, true), request.status_byte()]);
        queue.notify();
    }
    wait_until(|| queues.iter().all(|queue| queue.pending(&guest) == 10));
    for (request, data, n) in &requests {
        assert_eq!((request.status(&guest), guest.read(*data, 512)), (VIRTIO_BLK_S_OK, vec![*n as u8; 512]));
    }
}

#[test]
fn pages_are_converted_beside_a_busy_disk() {
    let world = World::new(1 << 20, FLUSH);
    let (guest, data) = (&world.guest, world.guest.pages(8));
    let request = Request::new(guest, VIRTIO_BLK_T_IN, 0);
    let (mut failed, mut fine) = (0, 0);
    for round in 0..200u64 {
        request.set(guest, VIRTIO_BLK_T_IN, round);
        world.queue.offer(guest, &[request.header(), (data, 8 * PAGE_SIZE as u32, true), request.status_byte()]);
        world.queue.notify();
        // While it is under way, or before, or afterwards.
        guest.convert(data + (round % 8) * PAGE_SIZE, 1, Private);
        world.queue.wait(guest);
        match request.status(guest) {
            VIRTIO_BLK_S_OK => fine += 1,
            VIRTIO_BLK_S_IOERR => failed += 1,
            other => panic!("status {other}"),
        }
        guest.convert(data + (round % 8) * PAGE_SIZE, 1, Shared);
        assert_eq!(guest.read(data + (round % 8) * PAGE_SIZE, 4096), [0; 4096], "the page came back with old data");
    }
    assert_eq!(counter(&world.device, "refused"), failed);
    assert_eq!(counter(&world.device, "read_ops"), fine);
    assert_eq!(request.make(guest, &world.queue, &[(data, 512, true)]), VIRTIO_BLK_S_OK);
}

#[test]
fn a_paused_disk_stands_still_and_loses_nothing() {
    let mut world = World::new(1 << 20, FLUSH);
    let data = world.guest.pages(1);
    for round in 0..20u64 {
        world.device.pause();
        let request = Request::new(&world.guest, VIRTIO_BLK_T_IN, round);
        world.queue.offer(&world.guest, &[request.header(), (data, 512, true), request.status_byte()]);
        world.queue.notify();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!((world.queue.pending(&world.guest), request.status(&world.guest)), (0, 0xff));
        world.device.resume();
        world.queue.wait(&world.guest);
        assert_eq!((request.status(&world.guest), world.guest.read(data, 1)), (0, vec![round as u8]));
    }
}

#[test]
fn a_reset_in_the_middle_of_requests_leaves_nothing_behind() {
    let mut world = World::with(1 << 20, FLUSH, |disk| disk.id = Some("reset-disk".into()));
    let data = world.guest.pages(16);
    wait_until(|| resources("reset-disk").1 == 1);
    for round in 0..50 {
        for _ in 0..round % 40 {
            let (guest, page) = (&world.guest, data);
            guest.write(page, &[0; 16]);
            world.queue.offer(guest, &[(page, 16, false), (page + 4096, 15 * 4096, true), (page + 20, 1, true)]);
        }
        world.queue.notify();
        world.device.deactivate();
        wait_until(|| resources("reset-disk").1 == 0);
        // No thread of it touches the rings any more.
        world.queue.reset(&world.guest);
        assert_eq!(world.queue.pending(&world.guest), 0);
        world.device.activate(world.guest.activation(FLUSH, &[&world.queue])).unwrap();
        let request = Request::new(&world.guest, VIRTIO_BLK_T_IN, 1);
        assert_eq!(request.make(&world.guest, &world.queue, &[(data, 512, true)]), VIRTIO_BLK_S_OK);
    }
}

#[test]
fn drivers_are_interrupted_when_they_want_to_be() {
    let (guest, image) = (Guest::new(), image(1 << 20));
    let mut device = Block::new(&disk(image.path())).unwrap();
    let queue = guest.queue(0, 128).with_event_idx();
    device.activate(guest.activation(FLUSH, &[&queue])).unwrap();
    let data = guest.pages(1);
    let interrupts = || guest.interrupts.queues.load(std::sync::atomic::Ordering::SeqCst);
    // Not before the fifth.
    queue.set_used_event(&guest, 4);
    for n in 1..=6 {
        let request = Request::new(&guest, VIRTIO_BLK_T_IN, 0);
        assert_eq!(request.make(&guest, &queue, &[(data, 512, true)]), VIRTIO_BLK_S_OK);
        if n == 4 {
            device.pause();
            assert_eq!(interrupts(), 0);
            device.resume();
        }
    }
    wait_until(|| interrupts() == 1);
    device.deactivate();
    assert_eq!(interrupts(), 1);
}
