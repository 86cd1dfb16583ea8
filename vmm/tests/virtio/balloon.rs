//! Balloons: what the guest gives back is the host's again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hypervisor::PAGE_SIZE;
use proptest::prelude::*;
use vmm::config::BalloonConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::balloon::{Balloon, ReclaimPages};

use crate::driver::Queue;
use crate::guest::{Guest, config, counter, wait_until};

const CONFIG: BalloonConfig = BalloonConfig { size: 8 << 20, deflate_on_oom: true, free_page_reporting: true };

struct World {
    guest: Guest,
    queues: [Queue; 3],
    device: Balloon,
}

impl World {
    fn new(guest: Guest) -> Self {
        let mut device = Balloon::new(&CONFIG, guest.ram.clone()).unwrap();
        let queues = [0, 1, 2].map(|index| guest.queue(index, 128));
        device.activate(guest.activation(device.features(), &[&queues[0], &queues[1], &queues[2]])).unwrap();
        Self { guest, queues, device }
    }

    /// Makes a request about pages by their addresses.
    fn request(&self, queue: usize, pages: &[u64]) {
        let numbers: Vec<u8> = pages.iter().flat_map(|gpa| ((gpa / PAGE_SIZE) as u32).to_le_bytes()).collect();
        let buffer = self.guest.pages(2);
        self.guest.write(buffer, &numbers);
        self.queues[queue].request(&self.guest, &[(buffer, numbers.len() as u32, false)]);
    }

    fn count(&self, name: &str) -> u64 {
        counter(&self.device, name)
    }
}

#[test]
fn what_the_guest_gives_back_is_the_host_s() {
    let world = World::new(Guest::plain());
    let pages = world.guest.pages(64);
    world.guest.write(pages, &[7; 64 * PAGE_SIZE as usize]);
    let before = world.guest.resident();
    // In no order, every other one of the last.
    let mut given: Vec<u64> = (0..32).chain((32..64).step_by(2)).map(|n| pages + n * PAGE_SIZE).collect();
    given.reverse();
    world.request(0, &given);
    assert_eq!(world.count("inflated_bytes"), 48 * PAGE_SIZE);
    // The queue and the request have come in between.
    assert!(world.guest.resident() <= before - 40 * PAGE_SIZE, "nothing was given back");
    for n in 0..64 {
        let kept = n >= 32 && n % 2 == 1;
        assert_eq!(world.guest.read(pages + n * PAGE_SIZE, 4096), vec![if kept { 7 } else { 0 }; 4096], "page {n}");
    }
    world.request(1, &given);
    assert_eq!((world.count("deflated_bytes"), world.count("failed")), (48 * PAGE_SIZE, 0));
}

#[test]
fn reported_pages_are_given_back_and_not_touched_otherwise() {
    let world = World::new(Guest::plain());
    let pages = world.guest.pages(1024);
    world.guest.write(pages, &vec![7; 1024 * PAGE_SIZE as usize]);
    let before = world.guest.resident();
    let half = 512 * PAGE_SIZE as u32;
    let written = world.queues[2].request(&world.guest, &[(pages, half, true), (pages + u64::from(half), half, true)]);
    assert_eq!((written, world.count("reported_bytes")), (0, 1024 * PAGE_SIZE));
    assert!(world.guest.resident() <= before - 1016 * PAGE_SIZE);
    assert_eq!(world.guest.read(pages + 1000 * PAGE_SIZE, 8), [0; 8]);
    // Half a page is no page.
    world.queues[2].request(&world.guest, &[(pages + 8, PAGE_SIZE as u32, true)]);
    world.queues[2].request(&world.guest, &[(pages, 100, true)]);
    assert_eq!(world.count("failed"), 2);
    // More than a report may be of: none of it is given back.
    let huge = 1 << 29;
    world.queues[2].request(&world.guest, &[(pages, half, true), (pages + u64::from(half), huge, true)]);
    assert_eq!((world.count("failed"), world.count("reported_bytes")), (3, 1024 * PAGE_SIZE));
}

#[test]
fn the_guest_is_told_of_sizes_and_tells_its_own() {
    let mut world = World::new(Guest::plain());
    assert_eq!((world.device.device_type(), world.device.features()), (5, 1 << 2 | 1 << 5));
    assert_eq!(config(&world.device, 0, 12), [[0, 8, 0, 0], [0; 4], [0; 4]].concat());
    let size = world.device.size().clone();
    let told = || world.guest.interrupts.config.load(Ordering::SeqCst);
    assert_eq!(told(), 0);
    size.set((1 << 20) + 100).unwrap();
    assert_eq!((told(), size.target()), (1, 1 << 20));
    assert_eq!(config(&world.device, 0, 4), 256u32.to_le_bytes());
    world.device.write_config(4, &100u32.to_le_bytes());
    assert_eq!((size.actual(), world.count("actual_bytes")), (100 * PAGE_SIZE, 100 * PAGE_SIZE));
    // What is no such field is ignored.
    world.device.write_config(0, &9u32.to_le_bytes());
    world.device.write_config(5, &[1; 4]);
    world.device.write_config(4, &[1; 2]);
    world.device.write_config(u64::MAX, &[1; 4]);
    assert_eq!((size.target(), size.actual()), (1 << 20, 100 * PAGE_SIZE));
    for bytes in [world.guest.ram.layout().size(), u64::MAX] {
        let error = size.set(bytes).unwrap_err().to_string();
        assert!(error.contains("ask for less"), "{error}");
    }
    world.device.deactivate();
    size.set(2 << 20).unwrap();
    assert_eq!((told(), size.actual()), (1, 0));
    let plain = BalloonConfig { size: 0, deflate_on_oom: false, free_page_reporting: false };
    let device = Balloon::new(&plain, world.guest.ram.clone()).unwrap();
    assert_eq!((device.features(), device.queue_sizes().len()), (0, 2));
    assert!(Balloon::new(&BalloonConfig { size: 1 << 40, ..plain }, world.guest.ram.clone()).is_err());
}

#[test]
fn memory_that_is_converted_is_not_given_back() {
    let world = World::new(Guest::new());
    let pages = world.guest.pages(2);
    world.guest.write(pages, &[7; 100]);
    world.request(0, &[pages]);
    world.queues[2].request(&world.guest, &[(pages, PAGE_SIZE as u32, true)]);
    assert_eq!((world.count("failed"), world.count("inflated_bytes")), (2, 0));
    assert_eq!(world.guest.read(pages, 100), [7; 100]);
}

#[test]
fn a_paused_balloon_stands_still() {
    let mut world = World::new(Guest::plain());
    let (pages, buffer) = (world.guest.pages(1), world.guest.pages(1));
    world.guest.write(pages, &[7; 100]);
    world.guest.write(buffer, &((pages / PAGE_SIZE) as u32).to_le_bytes());
    world.device.pause();
    world.queues[0].offer(&world.guest, &[(buffer, 4, false)]);
    world.queues[0].notify();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(world.guest.read(pages, 100), [7; 100]);
    world.device.resume();
    wait_until(|| world.queues[0].pending(&world.guest) == 1);
    assert_eq!(world.guest.read(pages, 100), [0; 100]);
}

/// Notes what is given back.
struct Noted(std::sync::Mutex<Vec<(u64, u64)>>);

impl ReclaimPages for Noted {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn reclaim(&self, pages: hypervisor::GpaRange) -> std::io::Result<()> {
        self.0.lock().unwrap().push((pages.start(), pages.len()));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn exactly_the_pages_that_were_named_are_given_back(
        numbers in prop::collection::vec(prop_oneof![8 => 0..40u32, 1 => any::<u32>(), 1 => Just(u32::MAX)], 0..100),
        odd in 0..2u32,
    ) {
        let (guest, noted) = (Guest::plain(), Arc::new(Noted(Default::default())));
        let mut device = Balloon::new(&CONFIG, noted.clone()).unwrap();
        let queue = guest.queue(0, 128);
        device.activate(guest.activation(0, &[&queue])).unwrap();
        let buffer = guest.pages(1);
        guest.write(buffer, &numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>());
        queue.request(&guest, &[(buffer, 4 * numbers.len() as u32 + odd, false)]);
        let given = noted.0.lock().unwrap().clone();
        let mut pages: Vec<u64> =
            given.iter().flat_map(|(start, size)| (0..size / PAGE_SIZE).map(move |n| start / PAGE_SIZE + n)).collect();
        pages.sort_unstable();
        let mut expected: Vec<u64> = if odd == 0 { numbers.iter().map(|n| u64::from(*n)).collect() } else { vec![] };
        expected.sort_unstable();
        prop_assert_eq!(pages, expected);
        prop_assert_eq!(counter(&device, "failed"), u64::from(odd));
    }
}
