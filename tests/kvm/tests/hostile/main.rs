//! Hostile guests: what the real `umbra` does under `isolation=software` with a guest that breaks every rule.
//!
//! Each test boots a guest that does as it is told ([`HostileGuest`]) and looks at three things: what the guest sees, what
//! the VMM's shared memory holds when it is read from outside, and what the VMM counts.

mod all_devices;
mod announcements;
mod contents;
mod devices;
mod growth;
mod launch;
mod paravirtual;
mod policy;
mod ranges;
mod reset;
mod wrong_alias;

use std::process::ExitCode;

use hypervisor::GpaRange;
use kvm_tests::hostile::HostileGuest;
use kvm_tests::trial::trial;
use libtest_mimic::Arguments;

/// A named test.
type Test = (&'static str, fn() -> anyhow::Result<()>);

/// What only private memory may ever hold.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// What everybody may see.
const OPEN: u64 = 0x09e2_0092_e009_2e01;
/// What memory holds that nobody has written.
const ZEROS: u64 = 0;

const MIB: u64 = 1 << 20;
const PAGE: u64 = kvm_tests::PAGE;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = [
        wrong_alias::TESTS,
        contents::TESTS,
        announcements::TESTS,
        ranges::TESTS,
        paravirtual::TESTS,
        policy::TESTS,
        growth::TESTS,
        launch::TESTS,
        reset::TESTS,
        devices::TESTS,
    ];
    let tests = tests.into_iter().chain(all_devices::TESTS.iter().copied());
    let trials = tests.flatten().map(|(name, test)| trial(name, *test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// So many pages from this address on.
fn pages(gpa: u64, count: u64) -> anyhow::Result<GpaRange> {
    Ok(GpaRange::new(gpa, count * PAGE)?)
}

/// Switches the guest off, which must go well.
fn finish(guest: HostileGuest) -> anyhow::Result<()> {
    let ending = guest.powers_off()?;
    anyhow::ensure!(ending.status.success(), "umbra ended with {}: {}", ending.status, ending.stderr);
    Ok(())
}
