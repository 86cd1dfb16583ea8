//! A hypervisor inside this process, that follows KVM's rules for guest memory and runs scripts in place of guests.
//!
//! It is for tests and fuzzers of whatever stands on the traits: it needs no `/dev/kvm`, shows what KVM hides
//! (attributes, what a guest_memfd holds), fails on order ([`ModelHypervisor::faults`]), and has VMs of every type, so that
//! the mismatches that SEV-SNP and TDX report can be had on any machine.
//!
//! What it models, with KVM's error numbers (Linux 6.12):
//! * regions: slots, overlaps in the guest and in a guest_memfd, whose a guest_memfd is;
//! * attributes: taken without a region, kept when a region goes, and what each VM type takes;
//! * accesses: which are private ([`VmType`]), which exit with a memory fault, which are MMIO, which fail without a word;
//! * conversion requests and the answers that each VM type passes on; general protection faults; filtered MSRs;
//! * populating memory ahead of the guest;
//! * interrupt lines, message routes and the addresses of events: what is wired, and what that takes. A guest's write to such
//!   an address still leaves to the VMM.
//!
//! What it does not: instructions, registers (kept, without effect), CPUID, interrupts and timers, huge pages, and the
//! launch of confidential guests but for [`ModelVm::finalise`]. The files behind its guest_memfds are ordinary memfds that
//! only the model maps.
//!
//! How it works: one reader-writer lock for each VM stands for KVM's. An access holds it shared for a page at a time, so it
//! is wholly before or wholly behind a change of attributes or regions, and none comes late: what
//! [`crate::Vm::set_attribute`] promises. vCPUs run at the same time. Discards go to the files, outside the lock, as they
//! do in Linux.
//!
//! ```
//! use hypervisor::model::{Action, ModelHypervisor, Outcome};
//! use hypervisor::{Exit, GpaRange, Hypervisor, PAGE_SIZE, PageState, Region, Slice, Vcpu, Vm, VmType};
//!
//! # fn main() -> hypervisor::Result<()> {
//! let vm = ModelHypervisor::new().create(VmType::SwProtected)?;
//! let page = GpaRange::new(0x1000, PAGE_SIZE)?;
//! let private = Some(Slice { backing: vm.create_guest_memfd(PAGE_SIZE)?, offset: 0 });
//! vm.add_region(0, &Region { range: page, shared: None, private })?;
//! vm.set_attribute(page, PageState::Private)?;
//!
//! let script = vm.script(0);
//! script.push(Action::write(0x1008, *b"secret"));
//! script.push(Action::read(0x1008, 6));
//! let mut vcpu = vm.create_vcpu(0)?;
//! assert!(matches!(vcpu.run()?, Exit::Halt));
//! assert_eq!(script.take_outcomes(), [Outcome::Written, Outcome::Read(b"secret".into())]);
//! assert_eq!(vm.attribute(0x1000), PageState::Private);
//! # Ok(())
//! # }
//! ```

mod access;
mod attributes;
mod hypercall;
mod inspect;
mod memory;
mod privateness;
mod script;
mod vcpu;
mod vm;
mod wires;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::faults::Faults;
use crate::x86_64::CpuidEntry;
use crate::{Capability, Error, Hypervisor, MemoryCaps, Result, Vm, VmType};

pub use hypercall::{Answer, ENCRYPTED};
pub use inspect::{allocated, read_private};
pub use privateness::Address;
pub use script::{Action, Outcome, Script};
pub use vm::ModelVm;

/// As many regions as KVM offers on x86.
const MAX_REGIONS: u32 = 32764;

/// A host that is only modelled.
#[derive(Debug, Clone)]
pub struct ModelHypervisor {
    caps: MemoryCaps,
    tdx_shared_bit: u32,
    faults: Faults,
}

impl Default for ModelHypervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelHypervisor {
    /// A host that has everything.
    pub fn new() -> Self {
        Self::with_caps(MemoryCaps {
            vm_types: VmType::ALL.to_vec(),
            user_memory2: true,
            guest_memfd: true,
            guest_memfd_flags: 0,
            memory_attributes: true,
            memory_fault_info: true,
            exit_hypercall: true,
            pre_fault: true,
            user_space_msr: true,
            msr_filter: true,
            amd_processor: true,
            max_regions: MAX_REGIONS,
        })
    }

    /// A host that has these. What it lacks fails as on a kernel without it.
    pub fn with_caps(caps: MemoryCaps) -> Self {
        Self { caps, tdx_shared_bit: 47, faults: Faults::default() }
    }

    /// The same host, where this bit of an address says that a TDX guest's access is a shared one: 47 or 51.
    pub fn with_tdx_shared_bit(self, bit: u32) -> Self {
        Self { tdx_shared_bit: bit, ..self }
    }

    /// The failures ordered for its VMs and vCPUs.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Creates an empty VM of this type, as [`Hypervisor::create_vm`] does, to be looked into.
    ///
    /// # Errors
    /// A type that this host lacks.
    pub fn create(&self, vm_type: VmType) -> Result<Arc<ModelVm>> {
        let capability = Capability::VmType(vm_type);
        if !self.caps.has(capability) {
            return Err(Error::Missing { capability });
        }
        Ok(Arc::new(ModelVm::new(self, vm_type)))
    }
}

impl Hypervisor for ModelHypervisor {
    fn caps(&self) -> &MemoryCaps {
        &self.caps
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        Ok(Vec::new())
    }

    fn create_vm(&self, vm_type: VmType) -> Result<Arc<dyn Vm>> {
        Ok(self.create(vm_type)?)
    }
}
