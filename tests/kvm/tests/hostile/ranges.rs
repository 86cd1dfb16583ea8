//! Conversions over the borders between the pieces of RAM.

use anyhow::ensure;
use arch::x86_64::map::{HIGH_RAM_START, LOW_END, LOW_RAM_LIMIT};
use hypervisor::GpaRange;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::{Boot, ENCRYPTED, HostileGuest, REFUSED};

use crate::{OPEN, PAGE, SECRET, Test, ZEROS, finish, pages};

pub const TESTS: &[Test] = &[
    ("a_conversion_over_the_border_at_640_kib_is_whole", over_the_border_at_640_kib),
    ("a_conversion_over_the_hole_below_4_gib_is_refused_and_ram_above_it_converts", around_the_hole),
];

fn over_the_border_at_640_kib() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let all = pages(LOW_END - 2 * PAGE, 4)?;
    guest.fills(Private, all, SECRET)?;
    let before = guest.statistics()?;

    guest.converts(all, Shared)?;
    let statistics = guest.statistics()?;
    expect::equal("shared memory", statistics.shared_bytes, before.shared_bytes + all.len())?;
    expect::equal("conversions", statistics.conversions_explicit, before.conversions_explicit + 1)?;
    guest.sees(Private, all, ZEROS)?;
    guest.sees(Shared, all, ZEROS)?;
    guest.fills(Shared, all, OPEN)?;
    let memory = guest.shared_memory()?;
    memory.holds_low(all, OPEN)?;
    memory.never_holds(SECRET)?;

    guest.converts(all, Private)?;
    memory.never_holds(OPEN)?;
    guest.sees(Private, all, ZEROS)?;
    let statistics = guest.statistics()?;
    expect::equal("shared memory", statistics.shared_bytes, before.shared_bytes)?;
    // The touches of both aliases were none that convert.
    expect::equal("implicit conversions", statistics.conversions_implicit, 0)?;
    finish(guest)
}

fn around_the_hole() -> anyhow::Result<()> {
    const GIB: u64 = 1 << 30;
    let mut guest = HostileGuest::boot_with(&Boot { memory: "4G", ..Boot::default() })?;
    let low = pages(LOW_RAM_LIMIT - 2 * PAGE, 2)?;
    let high = pages(HIGH_RAM_START, 2)?;
    let end = pages(HIGH_RAM_START + GIB - PAGE, 1)?;
    for range in [low, high, end] {
        guest.fills(Private, range, SECRET)?;
    }
    let before = guest.statistics()?;
    expect::equal("private memory", before.private_bytes, 4 * GIB)?;

    let over = GpaRange::new(low.start(), high.end() - low.start())?;
    let into = pages(low.start(), 3)?;
    let out_of = pages(HIGH_RAM_START - PAGE, 3)?;
    let behind = pages(end.start(), 2)?;
    let mut refused = 0;
    for range in [over, into, out_of, behind] {
        for attributes in [0, ENCRYPTED] {
            let answer = guest.asks(range.start(), range.pages(), attributes)?;
            ensure!(answer == REFUSED, "{range} with attributes {attributes:#x} returned {answer}");
            refused += 1;
        }
    }
    let after = guest.statistics()?;
    expect::equal("refusals", after.conversions_failed, before.conversions_failed + refused)?;
    expect::equal("private memory", after.private_bytes, before.private_bytes)?;
    for range in [low, high, end] {
        guest.sees(Private, range, SECRET)?;
    }

    // Behind the last byte of low RAM, the backing goes on with the first of high RAM.
    let memory = guest.shared_memory()?;
    for (range, offset) in [(low, low.start()), (high, LOW_RAM_LIMIT), (end, 4 * GIB - PAGE)] {
        guest.converts(range, Shared)?;
        guest.sees(Shared, range, ZEROS)?;
        guest.fills(Shared, range, OPEN)?;
        memory.holds(offset, range.len(), OPEN)?;
    }
    memory.never_holds(SECRET)?;
    guest.converts(high, Private)?;
    memory.holds(LOW_RAM_LIMIT, high.len(), ZEROS)?;
    memory.holds(low.start(), low.len(), OPEN)?;
    guest.sees(Private, high, ZEROS)?;
    finish(guest)
}
