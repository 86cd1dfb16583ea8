//! Rings that make no sense: loops, overflows, indices that jump, tables of odd sizes.
//!
//! Each is offered to a device that works. What comes of it shows in the used ring: then the device does the next request. Or
//! it shows in the counters alone: then the device is reset, which waits for it, and works. It has to have noticed a few faults
//! at most: it does not go on about them.

use kvm_tests::hostile::virtio::{Descriptor, Device, ENTRIES, INDIRECT, NEXT, WITH_INDIRECT, WRITE};
use kvm_tests::linux::namespace::in_own_network;

use anyhow::{Context, ensure};

use super::bed::{Bed, CONSOLE, Kind, NET, RECEIVE, RNG, TRANSMIT, VSOCK};
use crate::{PAGE, Test};

pub const TESTS: &[Test] = &[
    ("a_network_device_that_sends_survives_rings_of_nonsense", || in_own_network(|| nonsense(NET, TRANSMIT))),
    ("a_network_device_that_receives_survives_rings_of_nonsense", || in_own_network(|| nonsense(NET, RECEIVE))),
    ("a_socket_device_that_sends_survives_rings_of_nonsense", || in_own_network(|| nonsense(VSOCK, TRANSMIT))),
    ("a_socket_device_that_receives_survives_rings_of_nonsense", || in_own_network(|| nonsense(VSOCK, RECEIVE))),
    ("the_entropy_device_survives_rings_of_nonsense", || in_own_network(|| nonsense(RNG, RECEIVE))),
    ("a_console_survives_rings_of_nonsense", || in_own_network(|| nonsense(CONSOLE, TRANSMIT))),
];

/// How many faults and failures a device may count for one of these.
const MOST: u64 = 16;

/// What a ring is made to hold.
enum Case {
    /// Descriptors from the first on, which is made available.
    Chain(Vec<Descriptor>),
    /// The same, whose first one is of a table elsewhere: how many bytes it is said to have, and what is in it.
    Table(u32, Vec<Descriptor>),
    /// A table in private memory.
    PrivateTable,
    /// A table that is the queue's own.
    OwnTable,
    /// This number of a descriptor is made available.
    Head(u16),
    /// So many more are said to be available.
    Available(u16),
}

fn cases(data: u64, queue: usize) -> impl Iterator<Item = (&'static str, Case)> {
    let write = if queue == RECEIVE { WRITE } else { 0 };
    let one = |gpa, length, flags, next| Descriptor { gpa, length, flags: flags | write, next };
    let many =
        |length| (1..=ENTRIES).map(|next| one(data, length, if next < ENTRIES { NEXT } else { 0 }, next)).collect();
    [
        ("a descriptor that is its own next", Case::Chain(vec![one(data, 16, NEXT, 0)])),
        ("two that are each other's next", Case::Chain(vec![one(data, 16, NEXT, 1), one(data, 16, NEXT | WRITE, 0)])),
        ("a next one that there is not", Case::Chain(vec![one(data, 64, NEXT, ENTRIES)])),
        ("the last next one of all", Case::Chain(vec![one(data, 64, NEXT, u16::MAX)])),
        ("a buffer over the end of all addresses", Case::Chain(vec![one(u64::MAX - 4, 64, 0, 0)])),
        ("the longest buffer, at the last page", Case::Chain(vec![one(u64::MAX - PAGE, u32::MAX, 0, 0)])),
        ("the longest buffers, more than 4 GiB of them", Case::Chain(many(u32::MAX))),
        ("buffers of nothing", Case::Chain(many(0))),
        (
            "what can be read behind what can be written",
            Case::Chain(vec![
                Descriptor { gpa: data, length: 16, flags: NEXT | WRITE, next: 1 },
                Descriptor { gpa: data, length: 64, flags: 0, next: 0 },
            ]),
        ),
        ("a table of nothing", Case::Table(0, vec![one(data, 64, 0, 0)])),
        ("a table of an odd size", Case::Table(17, vec![one(data, 64, 0, 0)])),
        ("a table of less than a descriptor", Case::Table(8, vec![one(data, 64, 0, 0)])),
        ("the longest table", Case::Table(!15, vec![one(data, 64, NEXT, 0)])),
        ("a loop in a table", Case::Table(32, vec![one(data, 16, NEXT, 1), one(data, 16, NEXT, 0)])),
        ("a next one beyond a table", Case::Table(32, vec![one(data, 16, NEXT, 2)])),
        ("a table in a table", Case::Table(16, vec![one(data, 16, INDIRECT, 0)])),
        ("a table in private memory", Case::PrivateTable),
        ("a table that is the queue's own", Case::OwnTable),
        ("a descriptor that there is not", Case::Head(ENTRIES)),
        ("the last descriptor of all", Case::Head(u16::MAX)),
        ("one more than there are entries", Case::Available(ENTRIES + 1)),
        ("as many as can be", Case::Available(u16::MAX)),
        ("half of that", Case::Available(1 << 15)),
    ]
    .into_iter()
}

fn nonsense(kind: Kind, queue: usize) -> anyhow::Result<()> {
    let mut bed = Bed::new()?;
    let receives = queue != kind.asks_on();
    let mut device = bed.starts(kind, WITH_INDIRECT)?;
    let mut before = troubles(&bed, kind)?;
    // Tables are taken apart in the same way for all queues of a device.
    let is_of_use = |case: &Case| !(receives && matches!(case, Case::Table(..)));
    for (what, case) in cases(bed.data.start(), queue).filter(|(_, case)| is_of_use(case)) {
        let used = make(&mut bed, kind, queue, &mut device, &case)?;
        let mut uses = false;
        bed.waits_for(kind, |bed| {
            if receives {
                bed.causes_something_to_receive(kind, &mut device)?;
            }
            uses = device.used(&mut bed.guest, queue)? != used;
            Ok(uses || troubles(bed, kind)? > before)
        })?;
        if !uses {
            device = bed.starts(kind, WITH_INDIRECT)?;
        }
        if receives {
            bed.receives(kind, &mut device)?;
        } else {
            bed.works(kind, &mut device)?;
        }
        let now = troubles(&bed, kind)?;
        let seen = now - std::mem::replace(&mut before, now);
        ensure!(seen <= MOST, "{} noticed {seen} faults and failures with {what}", kind.id);
    }
    bed.nothing_moved()?;
    bed.ends()
}

/// Makes such a ring and notifies the device. Returns how many chains had been used before.
fn make(bed: &mut Bed, kind: Kind, queue: usize, device: &mut Device, case: &Case) -> anyhow::Result<u16> {
    let table = bed.data.start() + PAGE;
    let (secret, own) = (bed.secret.start(), bed.rings(kind)?[queue].descriptors);
    let guest = &mut bed.guest;
    let indirect = |gpa, length| Descriptor { gpa, length, flags: INDIRECT, next: 0 };
    let mut head = 0;
    match case {
        Case::Chain(chain) => {
            for (number, descriptor) in (0..).zip(chain) {
                device.describes(guest, queue, number, *descriptor)?;
            }
        }
        Case::Table(length, descriptors) => {
            for (number, descriptor) in (0..).zip(descriptors) {
                guest.stores_descriptor(table, number, *descriptor)?;
            }
            device.describes(guest, queue, 0, indirect(table, *length))?;
        }
        Case::PrivateTable => device.describes(guest, queue, 0, indirect(secret, 64))?,
        Case::OwnTable => device.describes(guest, queue, 0, indirect(own, 16 * u32::from(ENTRIES)))?,
        Case::Head(number) => head = *number,
        Case::Available(_) => {}
    }
    let used = device.used(guest, queue)?;
    match case {
        Case::Available(more) => device.claims_available(guest, queue, *more)?,
        _ => device.makes_available(guest, queue, head)?,
    }
    device.notifies(guest, queue)?;
    Ok(used)
}

/// What a device has counted of what was wrong.
fn troubles(bed: &Bed, kind: Kind) -> anyhow::Result<u64> {
    let counters = bed.counters(kind)?;
    let count = |name: &str| counters[name].as_u64().with_context(|| format!("there is no {name} in {counters}"));
    Ok(count(if kind.counts_failed { "failed" } else { "refused" })? + count("queue_faults")?)
}
