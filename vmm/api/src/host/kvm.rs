//! Machines on the real hypervisor.

use std::sync::Arc;

use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use vmm::config::{DiskConfig, NetConfig, VmConfig, VsockConfig};
use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::machine::MachineHandle;
use vmm::memory::GuestRam;
use vmm::{Machine, Result, Stop};

use super::{Built, Guest, Host, owned};
use crate::types::{Counters, PciDeviceInfo};

/// Builds machines on a hypervisor.
pub struct KvmHost(Box<dyn Hypervisor>);

impl KvmHost {
    /// Builds them on this one.
    pub fn new(hypervisor: impl Hypervisor + 'static) -> Self {
        Self(Box::new(hypervisor))
    }
}

impl Host for KvmHost {
    fn check(&self, config: &VmConfig) -> Result<()> {
        config.resolve(self.0.caps()).map(drop)
    }

    fn build(&self, config: &VmConfig, output: &Output, events: &Arc<EventMonitor>) -> Result<Box<dyn Built>> {
        self.check(config)?;
        Ok(Box::new(Machine::build(&*self.0, config, output, events)?))
    }
}

impl Built for Machine {
    fn isolation(&self) -> Isolation {
        Machine::isolation(self)
    }

    fn run(self: Box<Self>, events: &EventMonitor, started: &mut dyn FnMut(Arc<dyn Guest>)) -> Result<Stop> {
        Machine::run(*self, events, |handle| started(Arc::new(KvmGuest(handle))))
    }
}

/// A machine that runs.
struct KvmGuest(MachineHandle);

impl Guest for KvmGuest {
    fn isolation(&self) -> Isolation {
        self.0.isolation()
    }
    fn stop(&self) {
        self.0.stop();
    }
    fn reset(&self) {
        self.0.reset();
    }
    fn pause(&self) -> Result<()> {
        self.0.pause()
    }
    fn resume(&self) -> Result<()> {
        self.0.resume()
    }
    fn is_paused(&self) -> bool {
        self.0.is_paused()
    }
    fn nmi(&self) -> Result<()> {
        self.0.nmi()
    }
    fn power_button(&self) -> Result<()> {
        self.0.power_button()
    }
    fn memory(&self) -> &Arc<GuestRam> {
        self.0.memory()
    }
    fn add_disk(&self, config: DiskConfig) -> Result<PciDeviceInfo> {
        let added = self.0.devices().add_disk(config)?;
        Ok(PciDeviceInfo { id: added.id, bdf: added.bdf })
    }
    fn add_net(&self, config: NetConfig) -> Result<PciDeviceInfo> {
        let added = self.0.devices().add_net(config)?;
        Ok(PciDeviceInfo { id: added.id, bdf: added.bdf })
    }
    fn add_vsock(&self, config: VsockConfig) -> Result<PciDeviceInfo> {
        let added = self.0.devices().add_vsock(config)?;
        Ok(PciDeviceInfo { id: added.id, bdf: added.bdf })
    }
    fn remove_device(&self, id: &str) -> Result<()> {
        self.0.devices().remove(id)
    }
    fn set_balloon(&self, bytes: u64) -> Result<()> {
        self.0.devices().set_balloon(bytes)
    }
    fn balloon_size(&self) -> u64 {
        self.0.devices().balloon_size()
    }
    fn counters(&self) -> Counters {
        owned(self.0.devices().counters())
    }
    fn devices(&self) -> Vec<PciDeviceInfo> {
        let devices = self.0.devices().list();
        devices.into_iter().map(|device| PciDeviceInfo { id: device.id, bdf: device.bdf }).collect()
    }
}
