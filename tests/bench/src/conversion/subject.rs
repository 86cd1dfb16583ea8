//! A VM whose memory is converted in two ways: by the engine, and bare.
#![expect(unsafe_code, reason = "madvise takes an address; the mapping is the VM's shared memory")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use arch::x86_64::MemoryLayout;
use arch::x86_64::private_faults::{ConversionRequest, Origin};
use hypervisor::observed::ObservedVm;
use hypervisor::{Backing, GpaRange, GuestMemfd, Hypervisor, PageState, SharedMemory, Vm, VmType};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{Advice, madvise};
use vm_memory::VolatileMemory;
use vmm::memory::{GuestRam, RamOptions};

/// Who converts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The conversion engine.
    Engine,
    /// The two system calls that it takes at least: set the attribute, discard the side that is left.
    Bare,
}

/// Bits of the guest's physical addresses.
const ADDRESS_BITS: u8 = 40;

/// How often to look whether all discards are done.
const NAP: Duration = Duration::from_micros(200);

/// The VM. Its RAM has one alias with two backings, whose attribute follows the state.
pub struct Subject {
    vm: Arc<ObservedVm>,
    ram: GuestRam,
    shared: Arc<SharedMemory>,
    private: Arc<GuestMemfd>,
}

impl Subject {
    /// A VM with `size` bytes of RAM.
    ///
    /// # Errors
    /// A host that lacks such VMs, or memory for one.
    pub fn new(hypervisor: &dyn Hypervisor, size: u64) -> Result<Self> {
        let vm = ObservedVm::new(hypervisor.create_vm(VmType::SwProtected)?);
        let ram = GuestRam::new(vm.clone(), MemoryLayout::one_alias(size, ADDRESS_BITS)?, RamOptions::default())?;
        let shared = vm.shared().context("there is no shared memory")?;
        let private = vm.private().context("there is no private memory")?;
        Ok(Self { vm, ram, shared, private })
    }

    /// All RAM in pieces of this size.
    pub fn pieces(&self, size: u64) -> Result<Vec<GpaRange>> {
        let mut pieces = Vec::new();
        for ram in self.ram.layout().ranges() {
            for start in (ram.gpa.start()..ram.gpa.end()).step_by(usize::try_from(size)?) {
                pieces.push(GpaRange::new(start, size.min(ram.gpa.end() - start))?);
            }
        }
        Ok(pieces)
    }

    fn offset(&self, range: GpaRange) -> Result<u64> {
        let (ram, ..) = self.ram.layout().locate(range.start()).context("not RAM")?;
        Ok(ram.backing_offset(range.start()))
    }

    /// Has the host put memory behind one side of a range. Shared memory is in this process's page tables then, as it is
    /// where a guest has used it.
    pub fn populate(&self, range: GpaRange, side: PageState) -> Result<()> {
        let offset = self.offset(range)?;
        match side {
            PageState::Shared => {
                let mapping = self.shared.mapping();
                let part = mapping.get_slice(usize::try_from(offset)?, usize::try_from(range.len())?)?;
                // SAFETY: the bytes are those of a live mapping, and populating changes no contents.
                unsafe { madvise(part.ptr_guard_mut().as_ptr().cast(), part.len(), Advice::LinuxPopulateWrite)? };
            }
            PageState::Private => fallocate(&*self.private, FallocateFlags::KEEP_SIZE, offset, range.len())?,
        }
        Ok(())
    }

    /// Converts a range, and comes back when a vCPU could go on.
    pub fn convert(&self, way: Way, range: GpaRange, to: PageState) -> Result<()> {
        match way {
            Way::Engine => {
                let changed = self.ram.convert(ConversionRequest::new(range, to, Origin::MapGpaRange))?;
                ensure!(changed, "{range} was {to} already");
            }
            Way::Bare => {
                self.vm.set_attribute(range, to)?;
                self.backing(to.other()).discard(self.offset(range)?, range.len())?;
            }
        }
        Ok(())
    }

    fn backing(&self, side: PageState) -> Backing {
        match side {
            PageState::Shared => Backing::Shared(self.shared.clone()),
            PageState::Private => Backing::Private(self.private.clone()),
        }
    }

    /// Waits until all that was left is given back.
    pub fn settle(&self) -> Result<()> {
        loop {
            let statistics = self.ram.statistics();
            ensure!(statistics.discards_failed == 0, "a discard failed");
            if statistics.discard_backlog_bytes == 0 {
                return Ok(());
            }
            std::thread::sleep(NAP);
        }
    }

    /// Bytes of host memory behind the shared side.
    pub fn shared_bytes(&self) -> Result<u64> {
        let runs = hypervisor::model::allocated(&Backing::Shared(self.shared.clone()))?;
        Ok(runs.iter().map(|run| run.end - run.start).sum())
    }
}
