//! MERGE: what other branches bring. Each method is one of the agreed surface and says that it is not there; an inherent
//! method of the same name takes its place. Delete this file then.

use std::collections::BTreeMap;

use vmm::config::{ConsoleConfig, DiskConfig, NetConfig, VmConfig, VsockConfig};
use vmm::machine::MachineHandle;
use vmm::{Error, Result};

fn missing<T>(what: &'static str) -> Result<T> {
    Err(Error::Contradiction(what))
}

/// Refuses devices that no machine of this build has.
pub fn refuse_what_is_not_there(config: &VmConfig) -> Result<()> {
    let wanted = [
        (!config.disks.is_empty(), "this build has no disks: leave them out"),
        (!config.nets.is_empty(), "this build has no network devices: leave them out"),
        (config.vsock.is_some(), "this build has no socket device: leave it out"),
        (config.balloon.is_some(), "this build has no balloon: leave it out"),
        (config.console != ConsoleConfig::Off, "this build has no virtio console: use the serial console"),
    ];
    wanted.into_iter().find(|(wanted, _)| *wanted).map_or(Ok(()), |(_, why)| missing(why))
}

pub trait PlaceholderMethods {
    fn power_button(&self) -> Result<()> {
        missing("this build's machines have no power button")
    }
    fn devices(&self) -> &NoDevices {
        &NoDevices
    }
}

impl PlaceholderMethods for MachineHandle {}

pub struct NoDevices;

pub struct AddedDevice {
    pub id: String,
    pub bdf: String,
}

impl NoDevices {
    pub fn add_disk(&self, _: DiskConfig) -> Result<AddedDevice> {
        missing("this build can't add disks")
    }
    pub fn add_net(&self, _: NetConfig) -> Result<AddedDevice> {
        missing("this build can't add network devices")
    }
    pub fn add_vsock(&self, _: VsockConfig) -> Result<AddedDevice> {
        missing("this build can't add socket devices")
    }
    pub fn remove(&self, _: &str) -> Result<()> {
        missing("this build can't remove devices")
    }
    pub fn set_balloon(&self, _: u64) -> Result<()> {
        missing("this machine has no balloon")
    }
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        BTreeMap::new()
    }
    pub fn list(&self) -> Vec<AddedDevice> {
        Vec::new()
    }
}
