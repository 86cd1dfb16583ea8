//! A device of an embedder's own on the PCI bus: the example `virtio_device`, in a machine that runs.

#[expect(dead_code, reason = "its own main takes a kernel from the command line")]
#[path = "../../../../vmm/examples/virtio_device.rs"]
mod virtio_device;

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::linux::machine::{Boot, Linux};
use virtio_device::Foretold;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_uses_a_virtio_device_of_the_embedder_s", || uses(Isolation::Software)),
    ("an_ordinary_guest_uses_a_virtio_device_of_the_embedder_s", || uses(Isolation::None)),
];

const SCRIPT: &str = r#"
say ready
until grep -q virtio /sys/class/misc/hw_random/rng_current; do sleep 0.1; done
say numbers $(dd if=/dev/hwrng bs=8 count=1 2>/dev/null | od -An -tu1)
while [ -e /sys/bus/pci/devices/0000:00:01.0 ]; do sleep 0.1; done
say gone
"#;

fn uses(isolation: Isolation) -> anyhow::Result<()> {
    let mut guest = Linux::boot(&Boot { isolation, modules: &["virtio-rng"], script: SCRIPT }, |_| {})?;
    guest.expect("ready")?;
    let devices = guest.handle().devices().clone();
    let added = devices.add("foretold", None, Box::new(Foretold::default()))?;
    ensure!(added.id.contains("foretold"), "{added:?}");
    let said = guest.says()?;
    let numbers: Vec<u8> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Linux may have taken some before.
    let follows = numbers.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1));
    ensure!(numbers.len() == 8 && follows, "the guest said {said:?}");
    // Its threads rest and go on with the machine.
    guest.handle().pause()?;
    guest.handle().resume()?;
    let counters = devices.counters();
    let counted = counters.get(&added.id).with_context(|| format!("{counters:?} lacks {}", added.id))?;
    ensure!(counted["bytes"] >= 8 && counted["queue_faults"] == 0, "{counted:?}");
    devices.remove(&added.id)?;
    guest.expect("gone")?;
    guest.lets_go(&added.id)?;
    guest.powers_off()
}
