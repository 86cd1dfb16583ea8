//! `KVM_PRE_FAULT_MEMORY`, for which kvm-ioctls has no wrapper.
#![expect(unsafe_code, reason = "an ioctl of this module's own")]

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::GpaRange;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Populates as much of `range` as the kernel does in one go, and returns how many bytes that is.
pub(super) fn pre_fault(vcpu: &VcpuFd, range: GpaRange) -> Result<u64, errno::Error> {
    let mut rest = kvm_pre_fault_memory { gpa: range.start(), size: range.len(), ..Default::default() };
    // SAFETY: the descriptor is a vCPU's, and this ioctl reads and writes a structure of this type and nothing else of
    // this process but what regions put before the guest.
    let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut rest) };
    // The kernel moves what is done from `size` to `gpa`, and fails only if that is nothing.
    if result == 0 { Ok(range.len().saturating_sub(rest.size)) } else { Err(errno::Error::last()) }
}
