//! C: conversions.

use anyhow::Context;
use hypervisor::GpaRange;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::PAGE;
use kvm_tests::backend::Backend;
use kvm_tests::guest::Guest;
use kvm_tests::memory::TestMemory;
use kvm_tests::pattern::Pattern;

use crate::{BASE, Contract};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 5 * MIB;

/// What the host wrote, and the guest in a page's private and shared state.
const HOST: Pattern = Pattern::new(0x1057_0000);
const GUEST_PRIVATE: Pattern = Pattern::new(0x6e57_0000);
const GUEST_SHARED: Pattern = Pattern::new(0x54a2_0000);

pub const CONTRACTS: &[Contract] = &[
    ("c1_memory_is_shared_by_default", c1),
    ("c2_a_private_range_hides_what_the_guest_writes_and_leaves_its_neighbours", c2),
    ("c3_single_pages_go_back_to_shared_inside_a_private_range", c3),
    ("c4_a_whole_range_goes_back_to_shared", c4),
    ("c5_a_conversion_keeps_both_contents_unless_they_are_discarded", c5),
    ("c6_a_discard_alone_makes_zeros", c6),
];

/// A guest with memory that holds the host's pattern.
fn guest_with_memory(backend: &Backend) -> anyhow::Result<(Box<dyn Guest>, TestMemory)> {
    let vm = backend.create_private_vm()?;
    let guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    memory.host_writes(memory.all(), HOST)?;
    Ok((guest, memory))
}

/// Without a word from anybody, guest and host see each other's writes.
fn c1(backend: &Backend) -> anyhow::Result<()> {
    let (mut guest, memory) = guest_with_memory(backend)?;
    guest.sees(memory.all(), HOST)?.done()?;
    guest.writes(memory.all(), GUEST_SHARED)?.done()?;
    memory.host_sees(memory.all(), GUEST_SHARED)?;
    memory.host_writes(memory.all(), HOST)?;
    guest.sees(memory.all(), HOST)?.done()
}

/// What the guest writes to a private range, the host never sees; around it nothing changes.
fn c2(backend: &Backend) -> anyhow::Result<()> {
    let sizes = [(0, PAGE), (0, 2 * MIB), (PAGE, PAGE), (PAGE, 2 * MIB), (2 * MIB, PAGE)];
    for (offset, size) in sizes {
        let (mut guest, memory) = guest_with_memory(backend)?;
        let range = memory.part(offset, size)?;
        private_range_is_hidden(&mut *guest, &memory, range).with_context(|| format!("with {range} private"))?;
    }
    Ok(())
}

fn private_range_is_hidden(guest: &mut dyn Guest, memory: &TestMemory, range: GpaRange) -> anyhow::Result<()> {
    // The guest has it mapped, so that the conversion must take that mapping away.
    guest.sees(memory.all(), HOST)?.done()?;
    memory.set(range, Private)?;
    guest.sees(range, Pattern::ZEROS)?.done()?;
    guest.writes(range, GUEST_PRIVATE)?.done()?;
    memory.host_sees(memory.all(), HOST)?;
    for neighbour in memory.around(range)? {
        guest.sees(neighbour, HOST)?.done()?;
        guest.writes(neighbour, GUEST_SHARED)?.done()?;
        memory.host_sees(neighbour, GUEST_SHARED)?;
    }
    memory.host_sees(range, HOST)?;
    guest.sees(range, GUEST_PRIVATE)?.done()
}

/// Odd pages of a private range go back to shared, one by one; even pages stay private.
fn c3(backend: &Backend) -> anyhow::Result<()> {
    let (mut guest, memory) = guest_with_memory(backend)?;
    let range = memory.part(MIB, 2 * MIB)?;
    memory.set(range, Private)?;
    guest.writes(range, GUEST_PRIVATE)?.done()?;
    let pages = TestMemory::pages(range)?;
    let (even, odd): (Vec<_>, Vec<_>) = pages.iter().partition(|page| (page.start() / PAGE).is_multiple_of(2));
    for page in &odd {
        memory.set(*page, Shared)?;
    }
    for page in &odd {
        guest.sees(*page, HOST)?.done()?;
        guest.writes(*page, GUEST_SHARED)?.done()?;
    }
    for page in &odd {
        memory.host_sees(*page, GUEST_SHARED)?;
    }
    for page in &even {
        memory.host_sees(*page, HOST)?;
        guest.sees(*page, GUEST_PRIVATE)?.done()?;
    }
    Ok(())
}

/// A range that was private, some of its pages already back, is all shared after one call.
fn c4(backend: &Backend) -> anyhow::Result<()> {
    let (mut guest, memory) = guest_with_memory(backend)?;
    let range = memory.part(PAGE, 4 * MIB)?;
    memory.set(range, Private)?;
    guest.writes(range, GUEST_PRIVATE)?.done()?;
    memory.set(memory.part(2 * MIB, 2 * PAGE)?, Shared)?;
    memory.set(range, Shared)?;
    guest.sees(memory.all(), HOST)?.done()?;
    guest.writes(memory.all(), GUEST_SHARED)?.done()?;
    memory.host_sees(memory.all(), GUEST_SHARED)
}

/// Both sides of a range keep their contents through conversions; the side that is discarded comes back as zeros.
fn c5(backend: &Backend) -> anyhow::Result<()> {
    let (mut guest, memory) = guest_with_memory(backend)?;
    let (kept, discarded) = (memory.part(0, MIB)?, memory.part(MIB, MIB)?);
    let both = memory.part(0, 2 * MIB)?;
    memory.set(both, Private)?;
    memory.discard(discarded, Shared)?;
    memory.host_sees(kept, HOST)?;
    memory.host_sees(discarded, Pattern::ZEROS)?;
    guest.writes(both, GUEST_PRIVATE)?.done()?;

    memory.set(both, Shared)?;
    memory.discard(discarded, Private)?;
    guest.sees(kept, HOST)?.done()?;
    guest.sees(discarded, Pattern::ZEROS)?.done()?;

    memory.set(both, Private)?;
    guest.sees(kept, GUEST_PRIVATE)?.done()?;
    guest.sees(discarded, Pattern::ZEROS)?.done()
}

/// A discard without a conversion makes zeros of that page, for a guest that has it mapped, and of no other.
fn c6(backend: &Backend) -> anyhow::Result<()> {
    let (mut guest, memory) = guest_with_memory(backend)?;
    let page = memory.part(2 * MIB, PAGE)?;
    guest.sees(memory.all(), HOST)?.done()?;
    memory.discard(page, Shared)?;
    guest.sees(page, Pattern::ZEROS)?.done()?;
    memory.host_sees(page, Pattern::ZEROS)?;

    memory.set(memory.all(), Private)?;
    guest.writes(memory.all(), GUEST_PRIVATE)?.done()?;
    memory.discard(page, Private)?;
    guest.sees(page, Pattern::ZEROS)?.done()?;
    for rest in memory.around(page)? {
        guest.sees(rest, GUEST_PRIVATE)?.done()?;
        memory.host_sees(rest, HOST)?;
    }
    Ok(())
}
