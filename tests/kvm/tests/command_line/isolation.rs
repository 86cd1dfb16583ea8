//! Isolations: what contradicts, what the host lacks, and that unmappable memory is never silently left out.

use anyhow::ensure;
use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use kvm_tests::expect;
use kvm_tests::hostile::{Boot, HostileGuest};
use kvm_tests::requirement::{require, require_caps};

use crate::{Test, Umbra};

pub const TESTS: &[Test] = &[
    ("unmappable_memory_without_isolation_is_a_contradiction", contradictions),
    ("unmappable_memory_is_there_or_an_error", there_or_an_error),
    ("an_ordinary_guest_runs_and_powers_off", ordinary_guest),
];

fn contradictions() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let cases = [("on", "none", "unmappable=on"), ("off", "software", "unmappable=off")];
    for (unmappable, isolation, named) in cases {
        let (memory, platform) = (format!("unmappable={unmappable}"), format!("isolation={isolation}"));
        let arguments = ["--memory", &memory, "--platform", &platform];
        umbra.rejects(&mut umbra.run(&arguments), 1, &[named, "contradict", "isolation"])?;
    }
    Ok(())
}

/// On a host that can do it, all of RAM is private. On one that can't, every way of asking for it is an error that names
/// what is missing, or the command that does.
fn there_or_an_error() -> anyhow::Result<()> {
    let kvm = require_caps(&[])?;
    match Isolation::Software.missing(kvm.caps()).first() {
        None => unmappable_guest(),
        Some(missing) => {
            let umbra = Umbra::new()?;
            let by_name = ["--platform", "isolation=software"];
            let words = ["isolation=software", &missing.name(), missing.remedy()];
            umbra.rejects(&mut umbra.run(&by_name), 1, &words)?;
            let by_both = ["--memory", "unmappable=on", "--platform", "isolation=software"];
            umbra.rejects(&mut umbra.run(&by_both), 1, &words)?;
            // Software is the only isolation that there is to choose so far.
            for platform in [None, Some("isolation=auto")] {
                let mut command = umbra.run(&["--memory", "unmappable=on"]);
                command.args(platform.iter().flat_map(|platform| ["--platform", platform]));
                umbra.rejects(&mut command, 1, &words)?;
            }
            Ok(())
        }
    }
}

fn unmappable_guest() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let statistics = guest.statistics()?;
    expect::equal("private memory", statistics.private_bytes, statistics.ram_bytes)?;
    let ending = guest.powers_off()?;
    ensure!(ending.status.code() == Some(0) && ending.stderr.is_empty(), "{ending:?}");
    Ok(())
}

fn ordinary_guest() -> anyhow::Result<()> {
    require(require_caps(&[])?.caps(), Isolation::None.requirements())?;
    let mut guest = HostileGuest::boot_with(&Boot { isolation: Isolation::None, ..Boot::default() })?;
    expect::equal("the C-bit that it is told", guest.c_bit_mask(), 0)?;
    let statistics = guest.statistics()?;
    expect::equal("shared memory", statistics.shared_bytes, statistics.ram_bytes)?;
    let ending = guest.powers_off()?;
    ensure!(ending.status.code() == Some(0) && ending.stderr.is_empty(), "{ending:?}");
    Ok(())
}
