//! Asks KVM what it can do with guest memory.

use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_GUEST_MEMFD, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_MEMORY_FAULT_INFO,
    KVM_CAP_PRE_FAULT_MEMORY, KVM_CAP_USER_MEMORY2, KVM_CAP_VM_TYPES, KVM_CAP_X86_MSR_FILTER,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MEMORY_ATTRIBUTE_PRIVATE,
};
use kvm_ioctls::Kvm;

use crate::{MemoryCaps, VmType};

/// `KVM_CAP_GUEST_MEMFD_FLAGS` (Linux 6.18 `include/uapi/linux/kvm.h`); kvm-bindings has no name for it yet.
const KVM_CAP_GUEST_MEMFD_FLAGS: u32 = 244;

/// `KVM_HC_MAP_GPA_RANGE` (Linux `include/uapi/linux/kvm_para.h`).
pub(super) const KVM_HC_MAP_GPA_RANGE: u64 = 12;

pub(super) fn probe(kvm: &Kvm) -> MemoryCaps {
    // KVM_CHECK_EXTENSION says 0 for what it doesn't know; an error counts as that.
    let ask = |capability: u32| u64::try_from(kvm.check_extension_raw(capability.into())).unwrap_or(0);
    // Kernels before KVM_CAP_VM_TYPES (6.8) have ordinary VMs only.
    let types = ask(KVM_CAP_VM_TYPES) | 1 << VmType::Default.number();
    MemoryCaps {
        vm_types: VmType::ALL.into_iter().filter(|vm_type| types & 1 << vm_type.number() != 0).collect(),
        user_memory2: ask(KVM_CAP_USER_MEMORY2) != 0,
        guest_memfd: ask(KVM_CAP_GUEST_MEMFD) != 0,
        guest_memfd_flags: ask(KVM_CAP_GUEST_MEMFD_FLAGS),
        memory_attributes: ask(KVM_CAP_MEMORY_ATTRIBUTES) & u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0,
        memory_fault_info: ask(KVM_CAP_MEMORY_FAULT_INFO) != 0,
        exit_hypercall: ask(KVM_CAP_EXIT_HYPERCALL) & 1 << KVM_HC_MAP_GPA_RANGE != 0,
        pre_fault: ask(KVM_CAP_PRE_FAULT_MEMORY) != 0 && pre_faults_end(),
        user_space_msr: ask(KVM_CAP_X86_USER_SPACE_MSR) != 0,
        msr_filter: ask(KVM_CAP_X86_MSR_FILTER) != 0,
        amd_processor: is_amd(),
        max_regions: u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX),
    }
}

/// Linux 6.11 has the call, but there a vCPU that has not run waits in it for ever once any slot was removed: what it knows
/// of the guest's memory is obsolete, and it does not look (commit 20a6cff3b283; from 6.12 on, removing a slot leaves the rest as
/// it is, for VMs that have private memory).
fn pre_faults_end() -> bool {
    let system = rustix::system::uname();
    let mut numbers = system.release().to_bytes().split(|letter| !letter.is_ascii_digit());
    let mut next = || std::str::from_utf8(numbers.next()?).ok()?.parse::<u32>().ok();
    (next(), next()) >= (Some(6), Some(12))
}

/// CPUID leaf 0 spells the vendor in EBX, EDX, ECX. Hygon's processors are AMD's design.
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    vendor == b"AuthenticAMD" || vendor == b"HygonGenuine"
}
