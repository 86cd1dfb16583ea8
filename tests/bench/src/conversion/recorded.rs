//! A VM that remembers its regions: the bare sequence needs the backings, which their owner keeps to itself.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use hypervisor::{Backing, GpaRange, GuestMemfd, MsrFilter, PageState, Region, Result, SharedMemory, Vcpu, Vm};
use vmm_sys_util::eventfd::EventFd;

/// The VM.
pub struct RecordedVm {
    vm: Arc<dyn Vm>,
    regions: Mutex<Vec<Region>>,
}

impl RecordedVm {
    /// Passes everything on to `vm`.
    pub fn new(vm: Arc<dyn Vm>) -> Arc<Self> {
        Arc::new(Self { vm, regions: Mutex::default() })
    }

    /// The shared and the private memory of the first regions that have any.
    ///
    /// # Errors
    /// No region that has.
    pub fn backings(&self) -> anyhow::Result<(Arc<SharedMemory>, Arc<GuestMemfd>)> {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = regions.iter().find_map(|region| region.shared.as_ref()).context("no shared memory")?;
        let private = regions.iter().find_map(|region| region.private.as_ref()).context("no private memory")?;
        Ok((shared.backing.clone(), private.backing.clone()))
    }
}

impl Vm for RecordedVm {
    fn create_irqchip(&self) -> Result<()> {
        self.vm.create_irqchip()
    }

    fn create_vcpu(&self, id: u8) -> Result<Box<dyn Vcpu>> {
        self.vm.create_vcpu(id)
    }

    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.vm.register_irqfd(event, gsi)
    }

    fn exit_on_map_gpa_range(&self) -> Result<()> {
        self.vm.exit_on_map_gpa_range()
    }

    fn filter_msrs(&self, filter: &[MsrFilter]) -> Result<()> {
        self.vm.filter_msrs(filter)
    }

    fn create_guest_memfd(&self, size: u64) -> Result<Arc<GuestMemfd>> {
        self.vm.create_guest_memfd(size)
    }

    fn add_region(&self, slot: u32, region: &Region) -> Result<()> {
        self.vm.add_region(slot, region)?;
        self.regions.lock().unwrap_or_else(PoisonError::into_inner).push(region.clone());
        Ok(())
    }

    fn remove_region(&self, slot: u32) -> Result<()> {
        self.vm.remove_region(slot)
    }

    fn set_attribute(&self, range: GpaRange, state: PageState) -> Result<()> {
        self.vm.set_attribute(range, state)
    }

    fn discard(&self, backing: &Backing, offset: u64, size: u64) -> Result<()> {
        self.vm.discard(backing, offset, size)
    }
}
