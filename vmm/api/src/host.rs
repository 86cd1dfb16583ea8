//! What builds machines, and what can be done to one that runs.
//!
//! The controller knows machines by these traits only, so that its rules are tested on [`crate::model`]. [`KvmHost`] is the
//! real one.

mod kvm;

use std::collections::BTreeMap;
use std::sync::Arc;

use arch::x86_64::Isolation;
use vmm::config::{DiskConfig, NetConfig, VmConfig, VsockConfig};
use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::memory::GuestRam;
use vmm::{Result, Stop};

use crate::types::{Counters, PciDeviceInfo};

pub use kvm::KvmHost;

/// Builds machines.
pub trait Host: Send + Sync {
    /// Whether a machine like this can be built here, as far as that can be told without files and without building it.
    ///
    /// # Errors
    /// What can't be had.
    fn check(&self, config: &VmConfig) -> Result<()>;

    /// Builds a machine.
    ///
    /// # Errors
    /// The machine's own.
    fn build(&self, config: &VmConfig, output: &Output, events: &Arc<EventMonitor>) -> Result<Box<dyn Built>>;
}

/// A machine that is ready to run.
pub trait Built: Send {
    /// What makes its memory unmappable.
    fn isolation(&self) -> Isolation;

    /// Runs it until it stops; `started` gets the way to it.
    ///
    /// # Errors
    /// The machine's own.
    fn run(self: Box<Self>, events: &EventMonitor, started: &mut dyn FnMut(Arc<dyn Guest>)) -> Result<Stop>;
}

/// A machine that runs.
pub trait Guest: Send + Sync {
    /// What makes its memory unmappable.
    fn isolation(&self) -> Isolation;
    /// Ends it.
    fn stop(&self);
    /// Ends it, to be built anew.
    fn reset(&self);
    /// Lets all of it stand still; returns when it does.
    ///
    /// # Errors
    /// The machine's own.
    fn pause(&self) -> Result<()>;
    /// Lets it go on.
    ///
    /// # Errors
    /// The machine's own.
    fn resume(&self) -> Result<()>;
    /// Whether it stands still.
    fn is_paused(&self) -> bool;
    /// Gives its processors a non-maskable interrupt.
    ///
    /// # Errors
    /// The machine's own.
    fn nmi(&self) -> Result<()>;
    /// Presses its power button.
    ///
    /// # Errors
    /// The machine's own.
    fn power_button(&self) -> Result<()>;
    /// Its memory.
    fn memory(&self) -> &Arc<GuestRam>;
    /// Adds a disk.
    ///
    /// # Errors
    /// The device's own.
    fn add_disk(&self, config: DiskConfig) -> Result<PciDeviceInfo>;
    /// Adds a network device.
    ///
    /// # Errors
    /// The device's own.
    fn add_net(&self, config: NetConfig) -> Result<PciDeviceInfo>;
    /// Adds a socket device.
    ///
    /// # Errors
    /// The device's own.
    fn add_vsock(&self, config: VsockConfig) -> Result<PciDeviceInfo>;
    /// Asks the guest to let go of a device. The machine tells `vm` / `device-removed` once it is gone.
    ///
    /// # Errors
    /// The device's own.
    fn remove_device(&self, id: &str) -> Result<()>;
    /// Asks the guest to give so many bytes back.
    ///
    /// # Errors
    /// No balloon.
    fn set_balloon(&self, bytes: u64) -> Result<()>;
    /// Bytes that the guest has given back; zero without a balloon. It is the guest that says so: more than it has may come.
    fn balloon_size(&self) -> u64;
    /// What devices count.
    fn counters(&self) -> Counters;
    /// Devices, by name.
    fn devices(&self) -> Vec<PciDeviceInfo>;
}

/// Counters with names that are owned.
fn owned(counters: BTreeMap<String, BTreeMap<&'static str, u64>>) -> Counters {
    let names =
        |counters: BTreeMap<&'static str, u64>| counters.into_iter().map(|(name, n)| (name.into(), n)).collect();
    counters.into_iter().map(|(device, counters)| (device, names(counters))).collect()
}
