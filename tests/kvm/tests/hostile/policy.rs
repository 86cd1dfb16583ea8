//! What the operator's policy does to a guest.

use std::time::{Duration, Instant};

use anyhow::ensure;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::{Boot, HostileGuest};

use crate::{MIB, OPEN, PAGE, SECRET, Test, ZEROS, finish, pages};

pub const TESTS: &[Test] = &[
    ("a_refused_implicit_conversion_is_a_fault_and_the_guest_runs_on", refused_implicit),
    ("a_refused_announcement_is_an_error_and_the_guest_runs_on", refused_explicit),
    ("a_limit_delays_a_guest_that_converts_too_often", limited),
];

fn boot(conversions: &str) -> anyhow::Result<HostileGuest> {
    HostileGuest::boot_with(&Boot { conversions: Some(conversions), ..Boot::default() })
}

fn refused_implicit() -> anyhow::Result<()> {
    let mut guest = boot("implicit=refuse")?;
    let page = pages(32 * MIB, 1)?;
    guest.fills(Private, page, SECRET)?;
    let memory = guest.shared_memory()?;
    let allocated = memory.allocated()?;
    // More often than an access that is merely retried would be let through.
    for _ in 0..100 {
        guest.may_not_write(Shared, page.start(), OPEN)?;
    }
    guest.sees(Private, page, SECRET)?;
    expect::equal("memory that the VMM's shared side takes", memory.allocated()?, allocated)?;
    expect::equal("refusals", guest.statistics()?.conversions_failed, 100)?;
    guest.converts(page, Shared)?;
    guest.fills(Shared, page, OPEN)?;
    finish(guest)
}

fn refused_explicit() -> anyhow::Result<()> {
    let mut guest = boot("explicit=refuse")?;
    let page = pages(32 * MIB, 1)?;
    guest.fills(Private, page, SECRET)?;
    guest.may_not_convert(page, Shared)?;
    // What changes nothing is nothing to refuse.
    guest.converts(page, Private)?;
    guest.sees(Private, page, SECRET)?;
    // The other kind goes on.
    guest.sees(Shared, page, ZEROS)?;
    expect::equal("shared memory", guest.statistics()?.shared_bytes, PAGE)?;
    finish(guest)
}

fn limited() -> anyhow::Result<()> {
    let mut guest = boot("explicit=10/s")?;
    let page = pages(32 * MIB, 1)?;
    let start = Instant::now();
    for _ in 0..5 {
        guest.converts(page, Shared)?;
        guest.converts(page, Private)?;
    }
    // The first goes at once, and each of the other nine a tenth of a second later.
    ensure!(start.elapsed() >= Duration::from_millis(900), "ten conversions took {:?}", start.elapsed());
    finish(guest)
}
