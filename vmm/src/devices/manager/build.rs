//! From the configuration of a device to the device.

use crate::Result;
use crate::config::VmConfig;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::rng::Rng;

/// A device to be: its kind, its name if it has one, and itself.
type Configured = (&'static str, Option<String>, Box<dyn VirtioDevice>);

/// The devices that a machine starts with, in the order of their slots.
pub(super) fn configured(config: &VmConfig) -> Result<Vec<Configured>> {
    // MERGE: disks, nets, vsock, console and balloon, once their devices are there.
    let mut devices: Vec<Configured> = Vec::new();
    if let Some(rng) = &config.rng {
        devices.push(("rng", None, Box::new(Rng::new(rng)?)));
    }
    Ok(devices)
}
