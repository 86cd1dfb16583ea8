//! Touches through the alias that the page is not in.
//!
//! Through the shared alias of a private page: an implicit conversion, and nothing of what was private is seen. Through
//! the private alias of a shared page: it fails closed, and nothing of what is written there gets to the VMM. Where there
//! is no RAM: nothing, as on any machine.

use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::HostileGuest;

use crate::{MIB, OPEN, PAGE, SECRET, Test, ZEROS, finish, pages};

pub const TESTS: &[Test] = &[
    ("a_read_of_a_private_page_through_the_shared_alias_converts_it_and_shows_zeros", read_through_the_shared_alias),
    ("a_write_to_a_private_page_through_the_shared_alias_converts_it_and_is_shared", write_through_the_shared_alias),
    ("a_write_to_a_shared_page_through_the_private_alias_never_reaches_the_vmm", write_through_the_private_alias),
    (
        "a_write_through_the_private_alias_below_640_kib_never_reaches_the_vmm",
        write_through_the_private_alias_below_640_kib,
    ),
    ("where_there_is_nothing_either_alias_reads_all_ones_and_swallows_writes", nothing_there),
    ("what_a_stray_write_left_is_gone_once_the_page_was_converted_twice", stray_bytes_do_not_last),
];

fn read_through_the_shared_alias() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let all = pages(32 * MIB, 3)?;
    let [before, page, behind] = [0, 1, 2].map(|number| pages(32 * MIB + number * PAGE, 1));
    let (before, page, behind) = (before?, page?, behind?);
    guest.fills(Private, all, SECRET)?;
    let at_first = guest.statistics()?;
    expect::equal("shared memory before the touch", at_first.shared_bytes, 0)?;

    guest.sees(Shared, page, ZEROS)?;

    let statistics = guest.statistics()?;
    expect::equal("implicit conversions", statistics.conversions_implicit, at_first.conversions_implicit + 1)?;
    expect::equal("explicit conversions", statistics.conversions_explicit, at_first.conversions_explicit)?;
    expect::equal("shared memory", statistics.shared_bytes, PAGE)?;
    expect::equal("private memory", statistics.private_bytes, statistics.ram_bytes - PAGE)?;
    for neighbour in [before, behind] {
        guest.sees(Private, neighbour, SECRET)?;
    }
    guest.fills(Shared, page, OPEN)?;
    let memory = guest.shared_memory()?;
    memory.holds_low(page, OPEN)?;
    memory.never_holds(SECRET)?;
    // The conversion gave the private bytes back.
    guest.sees(Private, page, ZEROS)?;
    finish(guest)
}

fn write_through_the_shared_alias() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let all = pages(32 * MIB, 16)?;
    guest.fills(Private, all, SECRET)?;
    guest.touches(Shared, all, OPEN)?;
    let memory = guest.shared_memory()?;
    for number in 0..all.pages() {
        let start = all.start() + number * PAGE;
        memory.holds(start, 8, OPEN)?;
        memory.holds(start + 8, PAGE - 8, ZEROS)?;
    }
    memory.never_holds(SECRET)?;
    let ending = guest.powers_off()?;
    expect::equal("implicit conversions", ending.statistics.conversions_implicit, all.pages())?;
    expect::equal("shared memory", ending.statistics.shared_bytes, all.len())
}

fn write_through_the_private_alias() -> anyhow::Result<()> {
    write_through_the_private_alias_at(32 * MIB)
}

fn write_through_the_private_alias_below_640_kib() -> anyhow::Result<()> {
    write_through_the_private_alias_at(MIB / 2)
}

fn write_through_the_private_alias_at(gpa: u64) -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let page = pages(gpa, 1)?;
    guest.converts(page, Shared)?;
    guest.fills(Shared, page, OPEN)?;

    guest.fills(Private, page, SECRET)?;

    guest.sees(Private, page, SECRET)?;
    guest.sees(Shared, page, OPEN)?;
    let memory = guest.shared_memory()?;
    memory.holds_low(page, OPEN)?;
    memory.never_holds(SECRET)?;
    // Whatever the guest writes through the shared alias goes on being shared.
    guest.touches(Shared, page, !OPEN)?;
    memory.holds(gpa, 8, !OPEN)?;
    memory.never_holds(SECRET)?;
    let statistics = guest.statistics()?;
    expect::equal("shared memory", statistics.shared_bytes, PAGE)?;
    expect::equal("implicit conversions", statistics.conversions_implicit, 0)?;
    finish(guest)
}

fn stray_bytes_do_not_last() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let page = pages(32 * MIB, 1)?;
    guest.converts(page, Shared)?;
    guest.fills(Private, page, SECRET)?;
    guest.converts(page, Private)?;
    guest.converts(page, Shared)?;
    guest.sees(Shared, page, ZEROS)?;
    guest.sees(Private, page, ZEROS)?;
    guest.shared_memory()?.never_holds(SECRET)?;
    finish(guest)
}

fn nothing_there() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let before = guest.statistics()?;
    let allocated = guest.shared_memory()?.allocated()?;
    // Behind the end of RAM, before 4 GiB, and behind.
    for gpa in [64 * MIB, 0xd000_0000, 5 << 30] {
        for alias in [Private, Shared] {
            expect::equal(format!("the word at {gpa:#x}"), guest.reads(alias, gpa)?, u64::MAX)?;
            guest.touches(alias, pages(gpa, 4)?, SECRET)?;
            expect::equal(format!("the word at {gpa:#x}"), guest.reads(alias, gpa)?, u64::MAX)?;
        }
    }
    expect::equal("statistics", guest.statistics()?, before)?;
    expect::equal("memory that the VMM's shared side takes", guest.shared_memory()?.allocated()?, allocated)?;
    finish(guest)
}
