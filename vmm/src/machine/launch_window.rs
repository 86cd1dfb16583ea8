//! The launch window: memory that is put before the guest for its launch code to copy from, and taken away after that.
//!
//! It is no part of RAM, so nothing that the guest ever keeps is in it. It is anonymous memory, of which the host makes huge
//! pages.
//!
//! Private memory has small pages only, and the guest would fault in each of them. So what it is about to touch is populated
//! before, which takes a fraction of that, and while the window is being filled.
//!
//! Guarantee: when [`LaunchWindow::close`] has returned, the guest does not reach the window any more, and its memory is free.

use std::ops::ControlFlow;
use std::sync::Arc;

use arch::x86_64::launch::Window;
use hypervisor::{GpaRange, Region, SharedMemory, Slice, Vcpu, Vm};
use vm_memory::{Bytes, VolatileMemory};

use crate::{Error, Result};

/// Its memory slot, far behind those of RAM.
const SLOT: u32 = 256;

/// A window before the guest.
pub(crate) struct LaunchWindow {
    vm: Arc<dyn Vm>,
    memory: Arc<SharedMemory>,
}

impl LaunchWindow {
    /// Puts zeros before the guest.
    pub(crate) fn open(vm: Arc<dyn Vm>, range: GpaRange) -> Result<Self> {
        let memory = Arc::new(SharedMemory::anonymous(range.len())?);
        let shared = Some(Slice { backing: memory.clone(), offset: 0 });
        vm.add_region(SLOT, &Region { range, shared, private: None })?;
        Ok(Self { vm, memory })
    }

    /// Writes what belongs at an address of RAM.
    pub(super) fn write(&self, gpa: u64, data: &[u8]) -> Result<()> {
        let refused = || Error::GuestMemory { gpa, size: data.len() };
        let offset = usize::try_from(gpa).map_err(|_| refused())?;
        self.memory.mapping().as_volatile_slice().write_slice(data, offset).map_err(|_| refused())
    }

    /// Takes it away.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.vm.remove_region(SLOT)?)
    }
}

/// Has `fill` done, and meanwhile private memory populated that the guest is about to touch. It can do without the latter.
pub(super) fn populate_meanwhile<T>(vcpu: &mut dyn Vcpu, window: &Window, fill: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        // Without a thread, the guest populates its memory itself.
        let thread = std::thread::Builder::new().name("populate".into());
        let _populating = thread
            .spawn_scoped(scope, move || window.touched.iter().try_for_each(|range| populate(&mut *vcpu, *range)));
        fill()
    })
}

/// Populates memory, as far as that goes. Nobody else has the vCPU: it is at one place at a time.
fn populate(vcpu: &mut dyn Vcpu, range: GpaRange) -> ControlFlow<()> {
    let mut rest = Some(range);
    while let Some(range) = rest {
        match vcpu.pre_fault(range) {
            Ok(done) => rest = GpaRange::new(range.start() + done, range.len().saturating_sub(done)).ok(),
            Err(error) => {
                tracing::debug!("the guest will populate {range} itself: {}", crate::error::chain(&error));
                return ControlFlow::Break(());
            }
        }
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::model::{ModelHypervisor, allocated};
    use hypervisor::{PAGE_SIZE, PageState, VmType};

    #[test]
    fn memory_is_populated_while_the_window_is_filled() {
        let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
        let (window, ram) = (GpaRange::new(1 << 46, PAGE_SIZE).unwrap(), GpaRange::new(0, 8 * PAGE_SIZE).unwrap());
        let private = vm.create_guest_memfd(ram.len()).unwrap();
        let slice = Slice { backing: private.clone(), offset: 0 };
        vm.add_region(0, &Region { range: ram, shared: None, private: Some(slice) }).unwrap();
        vm.set_attribute(ram, PageState::Private).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let pages = |first, count| GpaRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap();
        // The third is no memory, and ends it.
        let touched = vec![pages(0, 2), pages(4, 1), pages(8, 1), pages(6, 1)];
        assert_eq!(populate_meanwhile(&mut *vcpu, &Window { range: window, touched }, || 5), 5);
        let found = allocated(&hypervisor::Backing::Private(private)).unwrap();
        assert_eq!(found, [0..2 * PAGE_SIZE, 4 * PAGE_SIZE..5 * PAGE_SIZE]);
    }

    #[test]
    fn a_window_is_written_by_addresses_of_ram_and_gone_when_closed() {
        let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
        let range = GpaRange::new(1 << 46, 4 * PAGE_SIZE).unwrap();
        let window = LaunchWindow::open(vm.clone(), range).unwrap();
        window.write(PAGE_SIZE, b"here").unwrap();
        let mut read = [0; 4];
        window.memory.mapping().as_volatile_slice().read_slice(&mut read, PAGE_SIZE as usize).unwrap();
        assert_eq!(&read, b"here");
        assert!(window.write(4 * PAGE_SIZE - 1, b"no").is_err() && window.write(u64::MAX, b"no").is_err());
        assert!(LaunchWindow::open(vm.clone(), range).is_err(), "the slot is taken");
        let memory = Arc::downgrade(&window.memory);
        window.close().unwrap();
        assert!(memory.upgrade().is_none());
        LaunchWindow::open(vm, range).unwrap().close().unwrap();
    }
}
