//! Descriptors, headers and rings in private memory.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Context, ensure};
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::virtio::{Device, FEATURES_TAKEN, NEEDS_RESET, Rings, WRITE};
use kvm_tests::linux::namespace::in_own_network;
use vmm::devices::virtio::vsock::packet::op;

use super::bed::{Bed, KINDS, Kind, NET, RECEIVE, RNG, TRANSMIT, VSOCK, packet};
use crate::{MIB, OPEN, PAGE, SECRET, Test};

pub const TESTS: &[Test] = &[
    ("devices_drop_what_names_private_memory_and_do_the_next", || in_own_network(requests)),
    ("devices_fill_no_private_buffer_and_fill_the_next", || in_own_network(buffers)),
    ("a_socket_device_ends_a_connection_whose_data_is_private", || in_own_network(data)),
    ("devices_with_rings_in_private_memory_need_a_reset_and_work_after_it", || in_own_network(rings)),
    ("devices_whose_rings_become_private_stand_still_until_they_are_reset", || in_own_network(rings_that_leave)),
];

/// What the guest asks devices for lies in private memory, wholly or in part.
fn requests() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let private = bed.secret.start();
    for kind in KINDS {
        let mut device = bed.starts(kind, FEATURES_TAKEN)?;
        bed.works(kind, &mut device)?;
        let (gpa, length, flags) = bed.request(kind)?;
        let half = length / 2;
        let bad = [
            ("private", vec![(private, length, flags)]),
            ("private at its end", vec![(private - u64::from(half), length, flags)]),
            ("private in its second half", vec![(gpa, half, flags), (private, length - half, flags)]),
            ("private in its first half", vec![(private, half, flags), (gpa, length - half, flags)]),
            ("private, by the alias for that", vec![(bed.guest.c_bit_mask() | private, length, flags)]),
            ("behind all RAM", vec![(1 << 45, length, flags)]),
            ("over the end of RAM", vec![(64 * MIB - u64::from(half), length, flags)]),
        ];
        for (place, chain) in bad {
            let what = format!("{}, with what it is asked for {place}", kind.id);
            let before = Counted::of(&bed, kind)?;
            let refused = bed.guest.statistics()?.accesses_refused;
            device.offers(&mut bed.guest, kind.asks_on(), 0, &chain)?;
            let (_, written) = device.has_used_all(&mut bed.guest, kind.asks_on())?;
            expect::equal(format!("{what}: bytes written"), written, 0)?;
            expect::equal(what.clone(), Counted::of(&bed, kind)?, before.and_one_refused(kind))?;
            ensure!(bed.guest.statistics()?.accesses_refused > refused, "{what}: no access was refused");
        }
        bed.works(kind, &mut device)?;
    }
    bed.nothing_moved()?;
    bed.ends()
}

/// What devices are to fill is private; the console has nothing to fill it with here.
fn buffers() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let private = bed.secret.start();
    let good = bed.data.start() + PAGE;
    for kind in [NET, VSOCK, RNG] {
        let mut device = bed.starts(kind, FEATURES_TAKEN)?;
        for (place, gpa) in [("private", private), ("private at its end", private - 8), ("behind all RAM", 1 << 45)] {
            let what = format!("{}, with a buffer {place}", kind.id);
            let before = Counted::of(&bed, kind)?;
            let page = crate::pages(good, 1)?;
            bed.guest.fills(Shared, page, OPEN)?;
            device.offers(&mut bed.guest, RECEIVE, 0, &[(gpa, 2048, WRITE)])?;
            device.offers(&mut bed.guest, RECEIVE, 1, &[(good, 2048, WRITE)])?;
            match kind {
                RNG => {}
                NET => bed.waits_for(kind, |bed| {
                    bed.causes_something_to_receive(kind, &mut device)?;
                    Ok(bed.count(kind, "rx_frames")? > before.received)
                })?,
                // The answer: nobody listens there.
                _ => bed.causes_something_to_receive(kind, &mut device)?,
            }
            let (last, written) = device.has_used_all(&mut bed.guest, RECEIVE)?;
            expect::equal(format!("{what}: the descriptor that was used last"), last, 1)?;
            ensure!(written > 0, "{what}: nothing was written to the buffer that is shared");
            ensure!(bed.guest.loads((Shared, good), 8)? != OPEN, "{what}: the buffer that is shared is as it was");
            let now = Counted::of(&bed, kind)?;
            expect::equal(format!("{what}: refused"), now.refused, before.refused + 1)?;
            expect::equal(format!("{what}: queue faults"), now.queue_faults, 0)?;
        }
    }
    bed.nothing_moved()?;
    bed.ends()
}

/// A packet whose header is shared, and whose data is not.
fn data() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let listener = UnixListener::bind(bed.socket(7))?;
    let (header, answers) = (bed.data.start(), bed.data.start() + PAGE);
    let mut device = bed.starts(VSOCK, FEATURES_TAKEN)?;
    for (number, (place, data)) in (0u16..).zip([
        ("private", (bed.secret.start(), 64)),
        ("private at its end", (bed.secret.start() - 32, 64)),
        ("behind all RAM", (1 << 45, 64)),
    ]) {
        let before = Counted::of(&bed, VSOCK)?;
        device.offers(&mut bed.guest, RECEIVE, 0, &[(answers, 256, WRITE)])?;
        bed.guest.stores_bytes((Shared, header), &packet(op::REQUEST, 7, 0))?;
        device.offers(&mut bed.guest, TRANSMIT, 0, &[(header, 44, 0)])?;
        device.has_used_all(&mut bed.guest, RECEIVE)?;
        expect::equal("the answer to a request", bed.guest.loads((Shared, answers + 30), 2)?, op::RESPONSE.into())?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(100)))?;

        device.offers(&mut bed.guest, RECEIVE, 0, &[(answers, 256, WRITE)])?;
        bed.guest.stores_bytes((Shared, header), &packet(op::DATA, 7, data.1))?;
        device.offers(&mut bed.guest, TRANSMIT, 1, &[(header, 44, 0), (data.0, data.1, 0)])?;
        device.has_used_all(&mut bed.guest, RECEIVE)?;
        let what = format!("the answer to data {place}, number {number}");
        expect::equal(what, bed.guest.loads((Shared, answers + 30), 2)?, op::RESET.into())?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        ensure!(received.is_empty(), "with data {place}, the host got {received:x?}");
        expect::equal(format!("with data {place}"), Counted::of(&bed, VSOCK)?, before.and_one_refused(VSOCK))?;
    }
    bed.works(VSOCK, &mut device)?;
    bed.nothing_moved()?;
    bed.ends()
}

fn rings() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let private = bed.secret.start();
    for kind in KINDS {
        let before = Counted::of(&bed, kind)?;
        let good = bed.rings(kind)?;
        for queue in 0..kind.queues {
            let ring = good[queue];
            let bad = [
                ("descriptors", Rings { descriptors: private, ..ring }),
                ("available ring", Rings { available: private, ..ring }),
                ("used ring", Rings { used: private, ..ring }),
                (
                    "used ring, by the alias for private memory,",
                    Rings { used: bed.guest.c_bit_mask() | private, ..ring },
                ),
            ];
            for (part, ring) in bad {
                let mut rings = good.clone();
                rings[queue] = ring;
                let (device, status) = Device::start(&mut bed.guest, kind.slot, &rings, FEATURES_TAKEN)?;
                let what = format!("the status of {} with the {part} of queue {queue} private", kind.id);
                expect::equal(what, status, NEEDS_RESET)?;
                device.notifies(&mut bed.guest, queue)?;
                expect::equal(kind.id, Counted::of(&bed, kind)?, before)?;
            }
        }
        let mut device = bed.starts(kind, FEATURES_TAKEN)?;
        bed.works(kind, &mut device)?;
    }
    bed.nothing_moved()?;
    bed.ends()
}

fn rings_that_leave() -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    for kind in KINDS {
        let mut device = bed.starts(kind, FEATURES_TAKEN)?;
        bed.works(kind, &mut device)?;
        let before = Counted::of(&bed, kind)?;
        let page = bed.rings_page(kind)?;
        bed.guest.converts(page, Private)?;
        bed.guest.fills(Private, page, SECRET)?;
        device.notifies(&mut bed.guest, kind.asks_on())?;
        bed.waits_for(kind, |bed| Ok(bed.count(kind, "queue_faults")? > before.queue_faults))?;
        let now = Counted::of(&bed, kind)?;
        expect::equal(kind.id, Counted { queue_faults: before.queue_faults, ..now }, before)?;
        bed.guest.sees(Private, page, SECRET)?;
        bed.guest.shared_memory()?.never_holds(SECRET)?;
        bed.guest.converts(page, Shared)?;
        let mut device = bed.starts(kind, FEATURES_TAKEN)?;
        bed.works(kind, &mut device)?;
    }
    bed.nothing_moved()?;
    bed.ends()
}

/// What a device has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    done: u64,
    received: u64,
    failed: u64,
    refused: u64,
    queue_faults: u64,
}

impl Counted {
    fn of(bed: &Bed, kind: Kind) -> anyhow::Result<Self> {
        let counters = bed.counters(kind)?;
        let count = |name: &str| counters[name].as_u64().with_context(|| format!("there is no {name} in {counters}"));
        Ok(Self {
            // Frames of the host's come when they like.
            received: if kind == NET { count("rx_frames")? } else { 0 },
            done: count(if kind == VSOCK { "tx_bytes" } else { kind.done })?,
            failed: if kind.counts_failed { count("failed")? } else { 0 },
            refused: count("refused")?,
            queue_faults: count("queue_faults")?,
        })
    }

    fn and_one_refused(self, kind: Kind) -> Self {
        Self { failed: self.failed + u64::from(kind.counts_failed), refused: self.refused + 1, ..self }
    }
}
