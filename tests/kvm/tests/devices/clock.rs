//! The clock.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::linux::machine::{Boot, Linux};

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_has_a_clock_and_its_driver", || reads(Isolation::Software)),
    ("an_ordinary_guest_has_a_clock_and_its_driver", || reads(Isolation::None)),
];

const SCRIPT: &str = "
say driver $(cat /sys/class/rtc/rtc0/name)
say time $(cat /sys/class/rtc/rtc0/since_epoch)
say complaints $(dmesg | grep -i rtc_cmos | grep -ci fail)
";

fn seconds() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// What the driver reads is the host's time.
fn reads(isolation: Isolation) -> anyhow::Result<()> {
    let before = seconds()?;
    let mut guest = Linux::boot(&Boot { isolation, modules: &[], script: SCRIPT }, |_| {})?;
    let driver = guest.says()?;
    ensure!(driver.starts_with("driver rtc_cmos"), "the guest says {driver:?}");
    let time = guest.says()?;
    let told = time.strip_prefix("time ").and_then(|time| time.parse::<u64>().ok());
    let told = told.with_context(|| format!("the guest says {time:?}"))?;
    let now = seconds()?;
    ensure!((before..=now).contains(&told), "the guest's clock has {told}, and the host's {before} to {now}");
    guest.expect("complaints 0")?;
    guest.powers_off()
}
