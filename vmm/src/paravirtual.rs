//! Filtered MSRs: those that name guest memory are checked before KVM gets them.

use arch::x86_64::msr::{self, FilteredMsr, ParavirtualMsr};
use hypervisor::Vcpu;

use crate::error::chain;
use crate::memory::GuestRam;

/// What a guest's write to a filtered MSR comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrAnswer {
    /// The guest goes on.
    Accept,
    /// The guest gets #GP.
    Refuse,
}

/// What the guest reads from a filtered MSR; `None` for #GP.
pub fn read(index: u32) -> Option<u64> {
    match msr::filtered(index)? {
        FilteredMsr::Constant(value) => Some(value),
        FilteredMsr::Ignored => Some(0),
        FilteredMsr::Paravirtual(_) => None,
    }
}

/// Handles a guest's write.
pub fn write(vcpu: &dyn Vcpu, id: u8, ram: &GuestRam, index: u32, value: u64) -> MsrAnswer {
    match msr::filtered(index) {
        Some(FilteredMsr::Ignored) => MsrAnswer::Accept,
        Some(FilteredMsr::Paravirtual(msr)) => write_paravirtual(vcpu, id, ram, msr, (index, value)),
        Some(FilteredMsr::Constant(_)) | None => MsrAnswer::Refuse,
    }
}

/// Reserves the memory first and lets KVM have the value second, so that no conversion comes between.
fn write_paravirtual(
    vcpu: &dyn Vcpu,
    id: u8,
    ram: &GuestRam,
    msr: ParavirtualMsr,
    (index, value): (u32, u64),
) -> MsrAnswer {
    let user = (id, msr.facility);
    let memory = msr.memory(value);
    if let Some(memory) = memory
        && !ram.reserve_paravirtual(user, memory)
    {
        tracing::debug!("vCPU {id}: refused {value:#x} for MSR {index:#x}: {:#x} is not shared RAM", memory.gpa);
        return MsrAnswer::Refuse;
    }
    let written = vcpu.set_msr(index, value);
    ram.settle_paravirtual(user, memory, written.is_ok());
    match written {
        Ok(()) => MsrAnswer::Accept,
        Err(error) => {
            tracing::debug!("vCPU {id}: {}", chain(&error));
            MsrAnswer::Refuse
        }
    }
}
