//! The launch window: memory that is put before the guest for its launch code to copy from, and taken away after that.
//!
//! It is no part of RAM, so nothing that the guest ever keeps is in it. It is anonymous memory, of which the host makes huge
//! pages.
//!
//! Guarantee: when [`LaunchWindow::close`] has returned, the guest does not reach the window any more, and its memory is free.

use std::sync::Arc;

use hypervisor::{GpaRange, Region, SharedMemory, Slice, Vm};
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

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::model::ModelHypervisor;
    use hypervisor::{PAGE_SIZE, VmType};

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
