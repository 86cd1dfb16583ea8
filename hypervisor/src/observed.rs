//! A VM that lets one look: at the backings of its regions, which their owner keeps to itself, and at its discards. For
//! tests and benchmarks of whatever stands on a [`Vm`]; everything else passes through.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::{Backing, GpaRange, GuestMemfd, MsiRoute, MsrFilter, PageState, Region, Result, SharedMemory, Vcpu, Vm};

/// Told of a discard before it is made, on the thread that makes it: backing, offset and size in bytes.
pub type DiscardObserver = dyn Fn(&Backing, u64, u64) + Send + Sync;

/// The VM.
pub struct ObservedVm {
    vm: Arc<dyn Vm>,
    regions: Mutex<Vec<Region>>,
    discards: Box<DiscardObserver>,
}

impl ObservedVm {
    /// Remembers the regions of `vm`.
    pub fn new(vm: Arc<dyn Vm>) -> Arc<Self> {
        Self::with_discards(vm, Box::new(|_, _, _| {}))
    }

    /// The same, and tells of each discard.
    pub fn with_discards(vm: Arc<dyn Vm>, discards: Box<DiscardObserver>) -> Arc<Self> {
        Arc::new(Self { vm, regions: Mutex::default(), discards })
    }

    /// The shared memory of the first region that has any.
    pub fn shared(&self) -> Option<Arc<SharedMemory>> {
        self.first(|region| Some(region.shared.as_ref()?.backing.clone()))
    }

    /// The private memory of the first region that has any.
    pub fn private(&self) -> Option<Arc<GuestMemfd>> {
        self.first(|region| Some(region.private.as_ref()?.backing.clone()))
    }

    fn first<T>(&self, of: impl Fn(&Region) -> Option<T>) -> Option<T> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(of)
    }
}

impl Vm for ObservedVm {
    fn create_irqchip(&self) -> Result<()> {
        self.vm.create_irqchip()
    }

    fn create_vcpu(&self, id: u8) -> Result<Box<dyn Vcpu>> {
        self.vm.create_vcpu(id)
    }

    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.vm.register_irqfd(event, gsi)
    }

    fn unregister_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.vm.unregister_irqfd(event, gsi)
    }

    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<()> {
        self.vm.set_msi_routes(routes)
    }

    fn register_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()> {
        self.vm.register_ioeventfd(event, gpa)
    }

    fn unregister_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()> {
        self.vm.unregister_ioeventfd(event, gpa)
    }

    fn exit_on_map_gpa_range(&self) -> Result<()> {
        self.vm.exit_on_map_gpa_range()
    }

    fn filter_msrs(&self, filter: &[MsrFilter]) -> Result<()> {
        self.vm.filter_msrs(filter)
    }

    fn clock(&self) -> Result<u64> {
        self.vm.clock()
    }

    fn set_clock(&self, nanoseconds: u64) -> Result<()> {
        self.vm.set_clock(nanoseconds)
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
        (self.discards)(backing, offset, size);
        self.vm.discard(backing, offset, size)
    }
}
