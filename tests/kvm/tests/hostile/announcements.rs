//! Announcements that are refused, or that need nothing done. The guest is told, nothing changes, and it runs on.

use anyhow::{Context, ensure};
use arch::x86_64::map::LOW_RAM_LIMIT;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::{ENCRYPTED, HostileGuest, REFUSED};

use crate::{MIB, OPEN, PAGE, SECRET, Test, ZEROS, finish, pages};

pub const TESTS: &[Test] = &[
    ("a_refused_conversion_changes_nothing", refusals),
    ("where_there_is_no_ram_pages_are_shared_and_never_become_private", holes),
    ("all_of_ram_can_be_announced_at_once", everything),
];

/// RAM of the guest.
const RAM: u64 = 64 * MIB;

/// Who refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The VMM, which counts it.
    Vmm,
    /// KVM, which does not ask the VMM.
    Kvm,
}

fn refusals() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    // Two private pages, two shared ones, and two private ones at the end of RAM.
    let (private, shared) = (pages(32 * MIB, 2)?, pages(32 * MIB + 2 * PAGE, 2)?);
    let last = pages(RAM - 2 * PAGE, 2)?;
    guest.converts(shared, Shared)?;
    guest.fills(Private, private, SECRET)?;
    guest.fills(Shared, shared, OPEN)?;
    guest.fills(Private, last, SECRET)?;
    let before = guest.statistics()?;

    let alias = guest.c_bit_mask();
    let some = shared.start() - PAGE;
    let to_private = [
        ("behind RAM", RAM, 1, By::Vmm),
        ("far behind RAM", 1 << 45, 1, By::Vmm),
        ("partly behind RAM", RAM - 2 * PAGE, 3, By::Vmm),
        ("all of RAM and one page", 0, RAM / PAGE + 1, By::Vmm),
        ("the private alias", alias | some, 2, By::Vmm),
        ("unaligned", some + 1, 2, By::Kvm),
        ("unaligned by half a page", some + PAGE / 2, 2, By::Kvm),
        ("no pages", some, 0, By::Kvm),
        ("bytes that overflow", some, 1 << 52, By::Vmm),
        ("bytes that overflow to two pages", some, (1 << 52) + 2, By::Vmm),
        ("an end that overflows", some, (1 << 52) - 1, By::Vmm),
        ("pages that overflow", some, u64::MAX, By::Kvm),
        ("the last page of all", !(PAGE - 1), 1, By::Vmm),
    ];
    let to_shared = [
        ("partly behind RAM", RAM - 2 * PAGE, 3, By::Vmm),
        ("all of RAM and one page", 0, RAM / PAGE + 1, By::Vmm),
        ("unaligned", some + 1, 2, By::Kvm),
        ("no pages", some, 0, By::Kvm),
        ("bytes that overflow", some, 1 << 52, By::Vmm),
        ("bytes that overflow to two pages", some, (1 << 52) + 2, By::Vmm),
        ("an end that overflows", some, (1 << 52) - 1, By::Vmm),
        ("pages that overflow", some, u64::MAX, By::Kvm),
    ];
    let unknown = [1 << 5, ENCRYPTED | 1 << 5, 1 << 63, ENCRYPTED | 1 << 63, 3, ENCRYPTED | 3, 0xf, u64::MAX];
    let mut cases: Vec<(String, u64, u64, u64, By)> = Vec::new();
    cases.extend(to_private.map(|(what, gpa, count, by)| (format!("{what}, to private"), gpa, count, ENCRYPTED, by)));
    cases.extend(to_shared.map(|(what, gpa, count, by)| (format!("{what}, to shared"), gpa, count, 0, by)));
    cases.extend(unknown.map(|bits| (format!("attributes {bits:#x}"), some, 2, bits, By::Vmm)));

    let mut expected = before;
    for (case, gpa, count, attributes, by) in cases {
        let answer = guest.asks(gpa, count, attributes).with_context(|| case.clone())?;
        ensure!(answer == REFUSED, "{case}: {count:#x} pages at {gpa:#x} returned {answer}, expected {REFUSED}");
        expected.conversions_failed += u64::from(by == By::Vmm);
        expect::equal(format!("after {case}: the statistics"), guest.statistics()?, expected)?;
    }

    guest.sees(Private, private, SECRET)?;
    guest.sees(Shared, shared, OPEN)?;
    guest.sees(Private, last, SECRET)?;
    let memory = guest.shared_memory()?;
    memory.holds_low(shared, OPEN)?;
    memory.never_holds(SECRET)?;
    // Attributes did not change either: what is private still converts on a touch, and what is shared does not.
    guest.sees(Shared, pages(private.start(), 1)?, ZEROS)?;
    expected.conversions_implicit += 1;
    expected.shared_bytes += PAGE;
    expected.private_bytes -= PAGE;
    expect::equal("the statistics at the end", guest.statistics()?, expected)?;
    finish(guest)
}

fn holes() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let before = guest.statistics()?;
    let mut refused = 0;
    for hole in [RAM, LOW_RAM_LIMIT, 0xfec0_0000, 0xfee0_0000, 1 << 40, guest.c_bit_mask()] {
        let shared = guest.asks(hole, 1, 0)?;
        ensure!(shared == 0, "a hole at {hole:#x} to shared returned {shared}");
        let private = guest.asks(hole, 1, ENCRYPTED)?;
        ensure!(private == REFUSED, "a hole at {hole:#x} to private returned {private}");
        refused += 1;
    }
    let after = guest.statistics()?;
    expect::equal("refusals", after.conversions_failed, before.conversions_failed + refused)?;
    expect::equal("private memory", after.private_bytes, before.private_bytes)?;
    expect::equal("conversions", after.conversions_explicit, before.conversions_explicit)?;
    finish(guest)
}

fn everything() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let page = pages(32 * MIB, 1)?;
    guest.fills(Private, page, SECRET)?;
    guest.converts(pages(0, RAM / PAGE)?, Private)?;
    guest.sees(Private, page, SECRET)?;
    let statistics = guest.statistics()?;
    expect::equal("private memory", statistics.private_bytes, RAM)?;
    expect::equal("conversions", statistics.conversions_explicit, 0)?;
    finish(guest)
}
