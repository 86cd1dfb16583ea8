//! A guest holds no more memory than it was given, however it converts.

use anyhow::ensure;
use hypervisor::GpaRange;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::hostile::{Boot, HostileGuest};
use kvm_tests::umbra::cgroup::MemoryCgroup;

use crate::{MIB, OPEN, SECRET, Test, finish};

pub const TESTS: &[Test] = &[
    ("converting_all_memory_back_and_forth_costs_no_more_than_ram", back_and_forth),
    ("touching_memory_through_either_alias_costs_no_more_than_ram", touches),
];

const RAM: u64 = 80 * MIB;
const MEMORY: &str = "80M";
/// How far the cgroup's figures may be off: some pages for each processor.
const LAG: u64 = 4 * MIB;

/// Almost all of RAM; the guest's kernel lies below.
fn window() -> anyhow::Result<GpaRange> {
    Ok(GpaRange::new(17 * MIB, 63 * MIB)?)
}

fn back_and_forth() -> anyhow::Result<()> {
    let cgroup = MemoryCgroup::new()?;
    let mut guest = HostileGuest::boot_with(&Boot { memory: MEMORY, cgroup: Some(&cgroup), ..Boot::default() })?;
    let window = window()?;
    guest.touches(Private, window, SECRET)?;
    costs(&cgroup, "all of it touched as private memory", window.len()..=RAM)?;
    let memory = guest.shared_memory()?;
    let part = GpaRange::new(window.start(), 4 * MIB)?;
    for (range, pages_at_a_time) in [(part, 1), (window, 63), (window, window.pages())] {
        let refused = guest.churns(range, pages_at_a_time)?;
        ensure!(refused == 0, "{refused} conversions of {pages_at_a_time} pages were refused");
        costs(&cgroup, "all of it converted back and forth", window.len()..=RAM)?;
        let shared = memory.allocated()?;
        ensure!(shared <= LAG, "the VMM's shared side still takes {shared} bytes");
    }
    guest.converts(window, Shared)?;
    guest.touches(Shared, window, OPEN)?;
    costs(&cgroup, "all of it shared", window.len()..=RAM)?;
    guest.converts(window, Private)?;
    costs(&cgroup, "none of it touched", 0..=RAM - window.len())?;
    finish(guest)
}

fn touches() -> anyhow::Result<()> {
    let cgroup = MemoryCgroup::new()?;
    let mut guest = HostileGuest::boot_with(&Boot { memory: MEMORY, cgroup: Some(&cgroup), ..Boot::default() })?;
    let window = window()?;
    guest.touches(Private, window, SECRET)?;
    // Held twice, these pages would be far more than the rest of RAM.
    let part = GpaRange::new(window.start(), 24 * MIB)?;
    guest.touches(Shared, part, OPEN)?;
    costs(&cgroup, "some of it touched through either alias", window.len()..=RAM)?;
    finish(guest)
}

fn costs(cgroup: &MemoryCgroup, when: &str, expected: std::ops::RangeInclusive<u64>) -> anyhow::Result<()> {
    let (least, most) = (expected.start().saturating_sub(LAG), expected.end() + LAG);
    let held = cgroup.guest_memory()?;
    ensure!((least..=most).contains(&held), "with {when}, the guest holds {held} bytes, expected {least} to {most}");
    Ok(())
}
