//! A guest holds no more memory than it was given, however it converts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use hypervisor::GpaRange;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::hostile::{Boot, HostileGuest};
use kvm_tests::umbra::cgroup::MemoryCgroup;

use crate::{MIB, OPEN, SECRET, Test, finish};

pub const TESTS: &[Test] = &[
    ("converting_all_memory_back_and_forth_costs_no_more_than_ram", back_and_forth),
    ("a_storm_of_conversions_never_holds_much_more_than_ram", storm),
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
        guest.settles()?;
        costs(&cgroup, "all of it converted back and forth", window.len()..=RAM)?;
        let shared = memory.allocated()?;
        ensure!(shared <= LAG, "the VMM's shared side still takes {shared} bytes");
    }
    guest.converts(window, Shared)?;
    guest.settles()?;
    guest.touches(Shared, window, OPEN)?;
    costs(&cgroup, "all of it shared", window.len()..=RAM)?;
    guest.is_populated()?;
    guest.converts(window, Private)?;
    guest.settles()?;
    costs(&cgroup, "none of it touched", 0..=RAM - window.len())?;
    finish(guest)
}

/// At least 10,000 conversions over all of RAM, which the guest touches in either state; sampled all the while.
fn storm() -> anyhow::Result<()> {
    const RAM: u64 = 128 * MIB;
    /// Almost all of it, in MiB.
    const ALL: u64 = 111;
    /// Pages at a time, and how many MiB of RAM. Larger pieces would be held back for a while, up to 8 MiB of them.
    const ROUNDS: [(u64, u64); 3] = [(1, 12), (16, ALL), (63, ALL)];
    let cgroup = MemoryCgroup::new()?;
    let mut guest = HostileGuest::boot_with(&Boot { memory: "128M", cgroup: Some(&cgroup), ..Boot::default() })?;
    guest.touches(Private, GpaRange::new(17 * MIB, ALL * MIB)?, SECRET)?;
    let before = guest.statistics()?.conversions_explicit;
    let end = AtomicBool::new(false);
    let (result, peak) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !end.load(Ordering::Relaxed) {
                peak = peak.max(cgroup.guest_memory()?);
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok::<u64, anyhow::Error>(peak)
        });
        let result = ROUNDS.iter().try_for_each(|(pages_at_a_time, mib)| {
            let refused = guest.churns(GpaRange::new(17 * MIB, mib * MIB)?, *pages_at_a_time)?;
            ensure!(refused == 0, "{refused} conversions of {pages_at_a_time} pages were refused");
            Ok(())
        });
        end.store(true, Ordering::Relaxed);
        (result, sampler.join().unwrap_or_else(|_| Err(anyhow!("the sampler panicked"))))
    });
    result?;
    let (peak, conversions) = (peak?, guest.statistics()?.conversions_explicit - before);
    let ratio = peak as f64 / RAM as f64;
    println!("a storm of {conversions} conversions: at its peak the guest held {ratio:.4} times its RAM");
    ensure!(conversions >= 10_000, "that was no storm: {conversions} conversions");
    ensure!(ratio <= 1.03, "the guest held {peak} bytes, {ratio:.4} times its RAM");
    ensure!(ratio >= 0.85, "the guest held {peak} bytes only, so all of its RAM was not touched");
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
