//! A driver that points a device at private memory: its data, its header, its status, its rings.
//!
//! A disk stands for all devices, which have one way to guest memory in common. What it is refused ends that request, is
//! counted, moves no byte, and the next request works.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hypervisor::GpaRange;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::disk::{
    Driver, ERROR, FEATURES_TAKEN, NEEDS_RESET, NOT_WITH_THESE_FEATURES, OK, READ, Request, Rings, UNTOUCHED, WORKS,
    WRITE_OUT,
};
use kvm_tests::hostile::{Boot, HostileGuest};
use serde_json::Value;
use tempfile::NamedTempFile;
use umbra_api::client::Client;
use vmm::devices::virtio::pci::ACCESS_PLATFORM;

use crate::{MIB, OPEN, PAGE, SECRET, Test, ZEROS, finish, pages};

pub const TESTS: &[Test] = &[
    ("a_disk_fails_requests_that_name_private_memory_and_does_the_next", buffers),
    ("a_disk_with_rings_in_private_memory_needs_a_reset_and_works_after_it", rings),
    ("a_disk_whose_rings_become_private_stands_still_until_it_is_reset", rings_that_leave),
];

/// What is on the disk.
const STORED: u64 = 0x0d15_c0d1_5c0d_15c0;
const SIZE: usize = 1 << 20;

/// How long the disk may take to notice, and how often it is asked.
const LIMIT: Duration = Duration::from_secs(100);
const POLL: Duration = Duration::from_millis(10);

/// What the counters of the disk say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    reads: u64,
    writes: u64,
    failed: u64,
    refused: u64,
}

/// A guest with a disk, and pages for its driver.
struct Bed {
    guest: HostileGuest,
    disk: NamedTempFile,
    client: Client,
    /// Shared: the rings, and header and status.
    shared: GpaRange,
    /// Shared: a page for data.
    data: GpaRange,
    /// The page behind it, which is private.
    secret: GpaRange,
}

impl Bed {
    fn new() -> anyhow::Result<Self> {
        let mut disk = NamedTempFile::new()?;
        disk.write_all(&STORED.to_le_bytes().repeat(SIZE / 8))?;
        let mut guest = HostileGuest::boot_with(&Boot { api: true, disk: Some(disk.path()), ..Boot::default() })?;
        let client = Client::new(&guest.api_socket());
        let (shared, data, secret) = (pages(32 * MIB, 2)?, pages(40 * MIB, 1)?, pages(40 * MIB + PAGE, 1)?);
        guest.converts(shared, Shared)?;
        guest.converts(data, Shared)?;
        guest.fills(Private, secret, SECRET)?;
        Ok(Self { guest, disk, client, shared, data, secret })
    }

    fn rings(&self) -> Rings {
        let at = self.shared.start();
        Rings { descriptors: at, available: at + 0x200, used: at + 0x400 }
    }

    /// A request for a page in shared memory, sound in all its parts.
    fn request(&self, kind: u32) -> Request {
        let at = self.shared.start() + PAGE;
        Request { kind, header: (Shared, at), data: (self.data.start(), PAGE as u32), status: (Shared, at + 0x100) }
    }

    fn counters(&self) -> anyhow::Result<Value> {
        let answer = self.client.call("vm.counters", &[], None, "application/json")?;
        let counters: Value = serde_json::from_slice(&answer.body)?;
        Ok(counters["_disk0"].clone())
    }

    fn counted(&self) -> anyhow::Result<Counted> {
        let counters = self.counters()?;
        let count = |name: &str| counters[name].as_u64().with_context(|| format!("there is no {name} in {counters}"));
        Ok(Counted {
            reads: count("read_ops")?,
            writes: count("write_ops")?,
            failed: count("failed")?,
            refused: count("refused")?,
        })
    }

    /// The driver sets the device up as it should, and reads and writes a page.
    fn works(&mut self) -> anyhow::Result<Driver> {
        self.guest.fills(Shared, self.shared, ZEROS)?;
        let rings = self.rings();
        let (mut driver, status) = Driver::start(&mut self.guest, rings, FEATURES_TAKEN)?;
        expect::equal("the device's status", status, WORKS)?;
        self.goes_on(&mut driver)?;
        Ok(driver)
    }

    fn goes_on(&mut self, driver: &mut Driver) -> anyhow::Result<()> {
        let (read, write) = (self.request(READ), self.request(WRITE_OUT));
        self.guest.fills(Shared, self.data, OPEN)?;
        expect::equal("a read's status", driver.does(&mut self.guest, &read)?, OK)?;
        self.guest.sees(Shared, self.data, STORED)?;
        expect::equal("a write's status", driver.does(&mut self.guest, &write)?, OK)
    }

    /// The disk has never been written anything but what was on it, and the secret is where it was.
    fn nothing_moved(&mut self) -> anyhow::Result<()> {
        let stored = std::fs::read(self.disk.path())?;
        ensure!(stored == STORED.to_le_bytes().repeat(SIZE / 8), "the disk's bytes are others than before");
        self.guest.sees(Private, self.secret, SECRET)?;
        let memory = self.guest.shared_memory()?;
        memory.never_holds(SECRET)?;
        memory.holds_low(self.secret, ZEROS)
    }
}

fn buffers() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let mut driver = bed.works()?;
    let mut expected = Counted { reads: 1, writes: 1, ..Counted::default() };
    expect::equal("counters", bed.counted()?, expected)?;
    let mut refused = bed.guest.statistics()?.accesses_refused;

    let (private, end) = (bed.secret.start(), bed.secret.end());
    let places = [
        ("all of it private", (private, PAGE as u32)),
        ("its end private", (private - PAGE, 2 * PAGE as u32)),
        ("half of its only sector private", (private - 256, 512)),
        ("private, by the alias for that", (bed.guest.c_bit_mask() | private, 512)),
        ("behind all RAM", (1 << 45, 512)),
        ("over the end of RAM", (64 * MIB - 512, 1024)),
    ];
    for (place, data) in places {
        for kind in [READ, WRITE_OUT] {
            // Nothing of it is written, not even what could be.
            bed.guest.fills(Shared, bed.data, OPEN)?;
            let request = Request { data, ..bed.request(kind) };
            let status = driver.does(&mut bed.guest, &request)?;
            expect::equal(format!("the status of request {kind} with data {place}"), status, ERROR)?;
            bed.guest.sees(Shared, bed.data, OPEN)?;
            expected.failed += 1;
            expected.refused += 1;
            expect::equal(place, bed.counted()?, expected)?;
            let now = bed.guest.statistics()?.accesses_refused;
            ensure!(now > refused, "{place}: {now} accesses were refused, and {refused} before");
            refused = now;
        }
    }

    // A header that can't be read, and a status that can't be written, which then nobody is told.
    let header = Request { header: (Private, end - 0x200), ..bed.request(READ) };
    expect::equal("the status of a request with its header private", driver.does(&mut bed.guest, &header)?, ERROR)?;
    let status = Request { status: (Private, end - 0x100), ..bed.request(READ) };
    expect::equal("a status that is private", driver.does(&mut bed.guest, &status)?, UNTOUCHED)?;
    (expected.failed, expected.refused) = (expected.failed + 2, expected.refused + 2);
    expect::equal("counters", bed.counted()?, expected)?;
    bed.guest.fills(Private, bed.secret, SECRET)?;

    bed.goes_on(&mut driver)?;
    bed.nothing_moved()?;
    // The same page, once it is shared.
    bed.guest.converts(bed.secret, Shared)?;
    let request = Request { data: (private, PAGE as u32), ..bed.request(READ) };
    expect::equal("the status of a read into a page that is shared now", driver.does(&mut bed.guest, &request)?, OK)?;
    bed.guest.sees(Shared, bed.secret, STORED)?;
    finish(bed.guest)
}

fn rings() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let private = bed.secret.start();
    let good = bed.rings();
    let bad = [
        ("descriptors", Rings { descriptors: private, ..good }),
        ("available ring", Rings { available: private, ..good }),
        ("used ring", Rings { used: private, ..good }),
        ("used ring's end", Rings { used: private - 8, ..good }),
        ("used ring, by the alias for private memory,", Rings { used: bed.guest.c_bit_mask() | private, ..good }),
        ("used ring behind all RAM and", Rings { used: 1 << 45, ..good }),
    ];
    for (part, rings) in bad {
        let (driver, status) = Driver::start(&mut bed.guest, rings, FEATURES_TAKEN)?;
        expect::equal(format!("the device's status with its {part} private"), status, NEEDS_RESET)?;
        driver.notifies(&mut bed.guest)?;
        expect::equal("counters", bed.counted()?, Counted::default())?;
    }
    // A driver that has no notion of memory that devices can't get at is none for this device.
    let (_, status) = Driver::start(&mut bed.guest, good, FEATURES_TAKEN & !ACCESS_PLATFORM)?;
    expect::equal("the device's status without ACCESS_PLATFORM", status, NOT_WITH_THESE_FEATURES)?;
    bed.works()?;
    bed.nothing_moved()?;
    finish(bed.guest)
}

fn rings_that_leave() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let driver = bed.works()?;
    let limit = Instant::now() + LIMIT;
    let before = bed.counted()?;
    let rings = pages(bed.shared.start(), 1)?;
    bed.guest.converts(rings, Private)?;
    bed.guest.fills(Private, rings, SECRET)?;
    driver.notifies(&mut bed.guest)?;
    while bed.counters()?["queue_faults"] == 0 {
        ensure!(Instant::now() < limit, "the disk does not notice: {}", bed.counters()?);
        std::thread::sleep(POLL);
    }
    expect::equal("counters", bed.counted()?, before)?;
    bed.guest.sees(Private, rings, SECRET)?;
    bed.guest.shared_memory()?.never_holds(SECRET)?;
    bed.guest.converts(rings, Shared)?;
    bed.works()?;
    bed.nothing_moved()?;
    finish(bed.guest)
}
