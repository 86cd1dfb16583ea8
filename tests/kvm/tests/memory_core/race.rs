//! N3 in small: devices, vCPUs and the host race for pages.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{bail, ensure};
use kvm_tests::backend::Backend;
use kvm_tests::race::{Race, Tally};
use vmm::memory::RamOptions;
use vmm::memory::guarded::{Guards, PageRange, Quiesce, Report};

use crate::Test;
use crate::bed::{Bed, pages};

pub const TESTS: &[Test] = &[
    ("n3_devices_vcpus_and_the_host_race_for_pages", holds),
    ("n3_the_race_is_lost_without_waiting_for_devices", bites),
];

const MIB: u64 = 1 << 20;

/// As long as a race takes that finds nothing.
const DURATION: Duration = Duration::from_secs(10);

/// Waits for nobody, and sees nobody.
struct DoNothing;

impl Quiesce for DoNothing {
    fn is_quiet(&self, _: &Guards, _: PageRange) -> bool {
        true
    }

    fn quiesce(&self, _: &Guards, _: PageRange, _: &mut Report<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Few pages, so that many meet at each.
fn race(backend: &Backend, options: RamOptions) -> anyhow::Result<Tally> {
    let bed = Bed::one_alias(backend, 4 * MIB, options)?;
    let guests = (0..2).map(|id| bed.guest(id)).collect::<anyhow::Result<_>>()?;
    let race = Race { ram: &bed.ram, vm: &bed.vm, pages: pages(2 * MIB, 8)?, devices: 3, hosts: 1, duration: DURATION };
    race.run(guests)
}

fn holds(backend: &Backend) -> anyhow::Result<()> {
    let tally = race(backend, RamOptions::default())?;
    // It was a race.
    ensure!(tally.accesses >= 100 && tally.refused >= 1 && tally.conversions >= 20, "{tally:?}");
    Ok(())
}

fn bites(backend: &Backend) -> anyhow::Result<()> {
    match race(backend, RamOptions { quiesce: Box::new(DoNothing), ..RamOptions::default() }) {
        Ok(tally) => bail!("nobody was waited for, and the race did not notice: {tally:?}"),
        Err(error) => {
            let error = format!("{error:#}");
            let violations = ["stale read", "lost write", "access after the flip", "stale bytes"];
            ensure!(violations.iter().any(|violation| error.contains(violation)), "{error}");
            Ok(())
        }
    }
}
