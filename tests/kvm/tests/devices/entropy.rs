//! The entropy device: found at boot, added and removed while the guest runs.

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::expect;
use kvm_tests::linux::machine::{Boot, Linux};
use vmm::config::RngConfig;
use vmm::devices::virtio::rng::Rng;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_uses_an_entropy_device_by_msi_x", || boots(Isolation::Software)),
    ("an_ordinary_guest_uses_an_entropy_device_by_msi_x", || boots(Isolation::None)),
    ("an_unmappable_guest_gains_and_loses_a_device", || plugs(Isolation::Software)),
    ("an_ordinary_guest_gains_and_loses_a_device", || plugs(Isolation::None)),
];

fn source() -> RngConfig {
    RngConfig { source: "/dev/urandom".into() }
}

const FIND: &str = r#"
say bus $(ls /sys/bus/pci/devices | tr '\n' ' ')
for device in /sys/bus/pci/devices/*; do
    say function $(cat $device/vendor) $(cat $device/device)
done
say current $(cat /sys/class/misc/hw_random/rng_current)
dd if=/dev/hwrng bs=64 count=64 2>/dev/null | wc -c | { read count; say read $count; }
grep -c 'PCI-MSIX-0000:00:01.0.*virtio' /proc/interrupts | { read lines; say vectors $lines; }
awk '/virtio0-input/ { print ($2 > 0) }' /proc/interrupts | { read any; say interrupted $any; }
"#;

fn boots(isolation: Isolation) -> anyhow::Result<()> {
    let boot = Boot { isolation, modules: &["virtio-rng"], script: FIND };
    let mut guest = Linux::boot(&boot, |config| config.rng = Some(source()))?;
    guest.expect("bus 0000:00:00.0 0000:00:01.0")?;
    guest.expect("function 0x1b36 0x0008")?;
    guest.expect("function 0x1af4 0x1044")?;
    guest.expect("current virtio_rng.0")?;
    guest.expect("read 4096")?;
    guest.expect("vectors 2")?;
    guest.expect("interrupted 1")?;
    let counters = guest.handle().devices().counters();
    let rng = counters.get("_rng0").with_context(|| format!("{counters:?} has no _rng0"))?;
    ensure!(rng["bytes"] >= 4096 && rng["refused"] == 0, "{rng:?}");
    guest.powers_off()
}

const PLUG: &str = r#"
say ready
until grep -q virtio /sys/class/misc/hw_random/rng_current; do sleep 0.1; done
dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c | { read count; say read $count; }
while [ -e /sys/bus/pci/devices/0000:00:01.0 ]; do sleep 0.1; done
say gone
until grep -q virtio /sys/class/misc/hw_random/rng_current; do sleep 0.1; done
dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c | { read count; say read $count; }
"#;

fn plugs(isolation: Isolation) -> anyhow::Result<()> {
    let boot = Boot { isolation, modules: &["virtio-rng"], script: PLUG };
    let mut guest = Linux::boot(&boot, |_| {})?;
    guest.expect("ready")?;
    let devices = guest.handle().devices().clone();
    let added = devices.add("rng", None, Box::new(Rng::new(&source())?))?;
    expect::equal("its place", added.bdf.as_str(), "0000:00:01.0")?;
    guest.expect("read 64")?;
    devices.remove(&added.id)?;
    guest.expect("gone")?;
    guest.lets_go(&added.id)?;
    devices.add("rng", Some("again"), Box::new(Rng::new(&source())?))?;
    guest.expect("read 64")?;
    guest.powers_off()
}
