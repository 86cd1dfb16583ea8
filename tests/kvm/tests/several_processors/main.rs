//! Debian's kernel on several processors. Apart from the tests of `machine`, since it needs a lab with a thread for each
//! emulated processor, and those do not.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::expect;
use kvm_tests::linux::machine::{Boot, Linux};
use kvm_tests::trial::trial;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("linux_has_four_processors", || has(Isolation::None, 4)),
        trial("linux_in_unmappable_memory_has_two_processors", || has(Isolation::Software, 2)),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Which processors are online, a program on each of them, and then the clock, again and again.
const SCRIPT: &str = r#"
say online $(cat /sys/devices/system/cpu/online)
say cores $(cat /sys/devices/system/cpu/cpu0/topology/core_cpus_list) $(cat /sys/devices/system/cpu/cpu1/topology/core_cpus_list)
for cpu in $(seq 0 $(($(nproc) - 1))); do
    say ran on $(taskset $((1 << cpu)) sh -c 'cut -d" " -f39 /proc/self/stat')
done
for i in $(seq 20); do
    say up $(cut -d" " -f1 /proc/uptime)
    sleep 0.2
done
"#;

const PAUSE: Duration = Duration::from_secs(5);

fn has(isolation: Isolation, processors: u8) -> anyhow::Result<()> {
    let boot = Boot { isolation, modules: &[], script: SCRIPT };
    let mut guest = Linux::boot(&boot, |config| config.cpus.boot = processors)?;
    guest.expect(&format!("online 0-{}", processors - 1))?;
    guest.expect("cores 0 1")?;
    for id in 0..processors {
        guest.expect(&format!("ran on {id}"))?;
    }
    // A pause is no time to the guest. How fast it is otherwise, and how soon its words are read, is nothing to rely on.
    let (before, start) = (up(&guest.says()?)?, Instant::now());
    guest.handle().pause()?;
    std::thread::sleep(PAUSE);
    guest.handle().resume()?;
    let mut after = before;
    for _ in 1..20 {
        let now = up(&guest.says()?)?;
        ensure!(now >= after, "the guest's clock went from {after} s back to {now} s");
        after = now;
    }
    let (own, passed) = (after - before, start.elapsed().as_secs_f64());
    let limit = passed - PAUSE.as_secs_f64() / 2.0;
    ensure!(own < limit, "{own} s passed for the guest, of {passed:.1} s with a pause of {PAUSE:?}");
    let statistics = guest.handle().memory_statistics();
    expect::equal("failed conversions", statistics.conversions_failed, 0)?;
    guest.powers_off()
}

/// Seconds since the guest was booted.
fn up(said: &str) -> anyhow::Result<f64> {
    let seconds = said.strip_prefix("up ").and_then(|seconds| seconds.parse().ok());
    seconds.with_context(|| format!("the guest said {said:?}"))
}
