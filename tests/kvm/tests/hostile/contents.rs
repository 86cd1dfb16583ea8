//! What conversions do to contents.

use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::HostileGuest;

use crate::{MIB, OPEN, PAGE, SECRET, Test, ZEROS, finish, pages};

pub const TESTS: &[Test] = &[
    ("announcing_the_state_that_pages_have_keeps_their_contents", no_op),
    ("neither_side_shows_what_it_held_before_a_conversion", old_bytes_are_gone),
    ("a_conversion_leaves_the_pages_around_it_as_they_are", neighbours),
];

fn no_op() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let (private, shared) = (pages(32 * MIB, 8)?, pages(40 * MIB, 8)?);
    guest.fills(Private, private, SECRET)?;
    guest.converts(shared, Shared)?;
    guest.fills(Shared, shared, OPEN)?;
    let before = guest.statistics()?;

    guest.converts(private, Private)?;
    guest.converts(shared, Shared)?;

    guest.sees(Private, private, SECRET)?;
    guest.sees(Shared, shared, OPEN)?;
    guest.shared_memory()?.holds_low(shared, OPEN)?;
    expect::equal("statistics", guest.statistics()?, before)?;
    // Half of the range has that state already: only the other half is emptied.
    let both = pages(private.start() + private.len() / 2, 8)?;
    let (held, other) = (pages(both.start(), 4)?, pages(both.start() + 4 * PAGE, 4)?);
    guest.converts(other, Shared)?;
    guest.fills(Shared, other, OPEN)?;
    guest.converts(both, Private)?;
    guest.sees(Private, held, SECRET)?;
    guest.sees(Private, other, ZEROS)?;
    finish(guest)
}

fn old_bytes_are_gone() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let range = pages(32 * MIB, 4)?;
    for _ in 0..3 {
        guest.fills(Private, range, SECRET)?;
        guest.converts(range, Shared)?;
        guest.sees(Shared, range, ZEROS)?;
        guest.sees(Private, range, ZEROS)?;
        let memory = guest.shared_memory()?;
        memory.never_holds(SECRET)?;
        guest.fills(Shared, range, OPEN)?;
        guest.converts(range, Private)?;
        guest.sees(Private, range, ZEROS)?;
        // Gone from what the VMM maps, before the guest gets to it again.
        memory.never_holds(OPEN)?;
    }
    // By a touch instead of an announcement, this time.
    guest.sees(Shared, range, ZEROS)?;
    expect::equal("implicit conversions", guest.statistics()?.conversions_implicit, range.pages())?;
    finish(guest)
}

fn neighbours() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    // Two pages of 2 MiB, so that a conversion must split what KVM maps in one piece.
    let all = pages(32 * MIB, 1024)?;
    guest.fills(Private, all, SECRET)?;
    let part = pages(33 * MIB + PAGE, 300)?;
    guest.converts(part, Shared)?;
    guest.fills(Shared, part, OPEN)?;
    let before = pages(all.start(), (part.start() - all.start()) / PAGE)?;
    let behind = pages(part.end(), (all.end() - part.end()) / PAGE)?;
    for neighbour in [before, behind] {
        guest.sees(Private, neighbour, SECRET)?;
    }
    let memory = guest.shared_memory()?;
    memory.holds_low(part, OPEN)?;
    for neighbour in [before, behind] {
        memory.holds_low(neighbour, ZEROS)?;
    }
    finish(guest)
}
