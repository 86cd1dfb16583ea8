//! N4 and N6: ranges over several slots and holes, and each error of each system call. A guest, a device and the host's
//! accounting agree with the map afterwards.

use anyhow::{Context, ensure};
use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{self, Private, Shared};
use hypervisor::faults::{Failure, Operation};
use kvm_tests::backend::Backend;
use kvm_tests::expect;
use kvm_tests::guest::Guest;
use kvm_tests::pattern::Pattern;
use vm_memory::GuestAddress;
use vmm::memory::{ConversionError, RamOptions};

use crate::Test;
use crate::bed::{Bed, pages};

pub const TESTS: &[Test] = &[
    ("n4_a_range_over_slots_and_a_hole_converts_whole", whole),
    ("n4_a_failure_in_the_middle_leaves_what_came_before_converted", middle),
    ("n6_each_error_of_an_attribute_leaves_everything_as_it_was", attribute),
    ("n6_each_error_of_a_discard_leaves_the_memory_owed", discard),
    ("n6_what_is_interrupted_is_done_again", interrupted),
];

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const WRITTEN: Pattern = Pattern::new(0x3417);
const ERRORS: [i32; 4] = [crate::ENOMEM, crate::EIO, crate::EINVAL, crate::EPERM];

/// RAM up to the hole below 4 GiB, and a piece above it.
fn around_the_hole(backend: &Backend) -> anyhow::Result<Bed> {
    Bed::one_alias(backend, 3 * GIB + MIB, RamOptions::default())
}

/// The map, the guest (where it reaches), devices and the host's memory agree on a page.
fn agrees(bed: &Bed, guest: &mut dyn Guest, gpa: u64, state: PageState) -> anyhow::Result<()> {
    expect::equal(format!("the map's state of {gpa:#x}"), bed.state(gpa), Some(state))?;
    let device = bed.ram.devices().view("device").read_obj::<u64>(GuestAddress(gpa));
    expect::equal(format!("whether a device may read {gpa:#x}"), device.is_ok(), state == Shared)?;
    if gpa < 4 * GIB {
        // What the guest writes shows on the shared side if, and only if, the page is shared.
        guest.writes(pages(gpa, 1)?, WRITTEN)?.done()?;
        expect::equal(format!("whether {gpa:#x} has shared memory"), bed.has_shared_memory(gpa)?, state == Shared)?;
    }
    Ok(())
}

fn whole(backend: &Backend) -> anyhow::Result<()> {
    let bed = around_the_hole(backend)?;
    let mut guest = bed.guest(0)?;
    let (below, above) = (3 * GIB - 4 * PAGE_SIZE, 4 * GIB + 4 * PAGE_SIZE);
    let over = pages(below, (above - below) / PAGE_SIZE)?;
    for to in [Private, Shared, Private] {
        bed.convert(over, to)?;
        for page in 0..4 {
            agrees(&bed, &mut *guest, below + page * PAGE_SIZE, to)?;
            agrees(&bed, &mut *guest, 4 * GIB + page * PAGE_SIZE, to)?;
        }
        agrees(&bed, &mut *guest, below - PAGE_SIZE, Shared)?;
        agrees(&bed, &mut *guest, above, Shared)?;
    }
    expect::equal("private memory", bed.ram.statistics().private_bytes, 8 * PAGE_SIZE)
}

fn middle(backend: &Backend) -> anyhow::Result<()> {
    let bed = around_the_hole(backend)?;
    let mut guest = bed.guest(0)?;
    let below = 3 * GIB - 2 * PAGE_SIZE;
    let over = pages(below, (4 * GIB + 2 * PAGE_SIZE - below) / PAGE_SIZE)?;
    for to in [Private, Shared] {
        // The first call is for the pages below the hole, the second for those above it.
        backend.faults().fail(Operation::SetAttribute, Failure::new(crate::ENOMEM).after(1));
        let error = bed.convert(over, to).err().context("it was converted")?;
        ensure!(matches!(error, ConversionError::Failed { .. }), "{error:?}");
        agrees(&bed, &mut *guest, below, to)?;
        agrees(&bed, &mut *guest, 4 * GIB, to.other())?;
        bed.convert(over, to)?;
        agrees(&bed, &mut *guest, 4 * GIB, to)?;
    }
    Ok(())
}

/// A VM with three pages in this state, all written by the guest.
fn written(backend: &Backend, from: PageState) -> anyhow::Result<(Bed, Box<dyn Guest>)> {
    let bed = Bed::one_alias(backend, 4 * MIB, RamOptions::default())?;
    let mut guest = bed.guest(0)?;
    let range = pages(2 * MIB, 3)?;
    bed.convert(range, from)?;
    guest.writes(range, WRITTEN)?.done()?;
    Ok((bed, guest))
}

fn attribute(backend: &Backend) -> anyhow::Result<()> {
    let range = pages(2 * MIB, 3)?;
    for (errno, from) in ERRORS.into_iter().flat_map(|errno| [(errno, Shared), (errno, Private)]) {
        let (bed, mut guest) = written(backend, from)?;
        backend.faults().fail(Operation::SetAttribute, Failure::new(errno));
        let error = bed.convert(range, from.other()).err().context("it was converted")?;
        ensure!(matches!(error, ConversionError::Failed { .. }) && !error.is_fatal(), "{error:?}");
        guest.sees(range, WRITTEN)?.done().context("the contents after a failure")?;
        agrees(&bed, &mut *guest, range.start(), from)?;
        bed.convert(range, from.other())?;
        guest.sees(range, Pattern::ZEROS)?.done().context("the contents after success")?;
        agrees(&bed, &mut *guest, range.start(), from.other())?;
    }
    Ok(())
}

fn discard_of(side: PageState) -> Operation {
    if side == Shared { Operation::DiscardShared } else { Operation::DiscardPrivate }
}

fn discard(backend: &Backend) -> anyhow::Result<()> {
    let range = pages(2 * MIB, 3)?;
    for (errno, from) in ERRORS.into_iter().flat_map(|errno| [(errno, Shared), (errno, Private)]) {
        let (bed, mut guest) = written(backend, from)?;
        let to = from.other();
        backend.faults().fail(discard_of(from), Failure::new(errno).always());
        bed.convert(range, to)?;
        guest.sees(range, Pattern::ZEROS)?.done().context("the other side")?;
        expect::equal("memory that is owed", bed.ram.statistics().discard_backlog_bytes, range.len())?;
        let error = bed.convert(range, from).err().context("pages that are owed were used again")?;
        ensure!(matches!(error, ConversionError::Owed { .. }), "{error:?}");
        backend.faults().clear();
        bed.convert(range, from)?;
        guest.sees(range, Pattern::ZEROS)?.done().context("the side that was owed")?;
        expect::equal("memory that is owed", bed.ram.statistics().discard_backlog_bytes, 0)?;
        agrees(&bed, &mut *guest, range.start(), from)?;
    }
    Ok(())
}

fn interrupted(backend: &Backend) -> anyhow::Result<()> {
    let range = pages(2 * MIB, 3)?;
    let failures = [
        Failure::new(crate::EINTR).times(3),
        Failure::new(crate::EAGAIN).times(3),
        Failure::new(crate::EAGAIN).partly(PAGE_SIZE).times(2),
    ];
    for (failure, from) in failures.into_iter().flat_map(|failure| [(failure, Shared), (failure, Private)]) {
        let (bed, mut guest) = written(backend, from)?;
        backend.faults().fail(Operation::SetAttribute, failure);
        backend.faults().fail(discard_of(from), Failure::new(crate::EINTR).times(2));
        bed.convert(range, from.other())?;
        backend.faults().clear();
        guest.sees(range, Pattern::ZEROS)?.done()?;
        expect::equal("discards that failed", bed.ram.statistics().discards_failed, 0)?;
        for page in 0..3 {
            agrees(&bed, &mut *guest, range.start() + page * PAGE_SIZE, from.other())?;
        }
    }
    Ok(())
}
