//! Can this host run that test?
//!
//! A test names what it needs before it does anything. What is missing comes back as [`Unavailable`], one line that
//! names it; [`crate::trial`] turns that into an ignored test, or into a failed one inside the lab.

use anyhow::Context;
use hypervisor::kvm::KvmHypervisor;
use hypervisor::{Capability, Hypervisor, MemoryCaps, VmType};
use kvm_bindings::{KVM_CAP_GUEST_MEMFD, KVM_CAP_VM_TYPES};
use kvm_ioctls::Kvm;

use crate::raw::Vm;

/// `KVM_CAP_GUEST_MEMFD_FLAGS` (Linux 6.18), which kvm-bindings does not have yet.
pub const KVM_CAP_GUEST_MEMFD_FLAGS: u32 = 244;

/// Why this host can't run a test.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is no usable /dev/kvm.
    #[error("{0}")]
    NoKvm(hypervisor::Error),
    /// KVM is there, but lacks something.
    #[error("this host lacks {0}")]
    Missing(Capability),
    /// This kernel is known to get it wrong.
    #[error("a bug of this kernel: {0}")]
    KernelBug(&'static str),
    /// Something else is not as it must be.
    #[error("this test needs {0}")]
    Needs(String),
}

/// Refuses a host that lacks anything in `needed`.
pub fn require(caps: &MemoryCaps, needed: &[Capability]) -> Result<(), Unavailable> {
    match needed.iter().find(|capability| !caps.has(**capability)) {
        Some(missing) => Err(Unavailable::Missing(*missing)),
        None => Ok(()),
    }
}

/// KVM through the traits, if it offers everything in `needed`.
pub fn require_caps(needed: &[Capability]) -> Result<KvmHypervisor, Unavailable> {
    let kvm = KvmHypervisor::open().map_err(Unavailable::NoKvm)?;
    require(kvm.caps(), needed)?;
    Ok(kvm)
}

/// KVM for raw ioctls, if it offers everything in `needed`.
pub fn open_kvm(needed: &[Capability]) -> anyhow::Result<Kvm> {
    require_caps(needed)?;
    Kvm::new().context("opening /dev/kvm a second time")
}

/// One VM of each type that takes a guest_memfd and needs no special hardware; at least one.
pub fn vms_with_guest_memfd() -> anyhow::Result<Vec<Vm>> {
    let kvm = open_kvm(&[Capability::UserMemory2, Capability::GuestMemfd])?;
    let offered = kvm.check_extension_raw(KVM_CAP_VM_TYPES.into());
    let mut vms = Vec::new();
    for vm_type in [VmType::Default, VmType::SwProtected].map(VmType::number) {
        if offered & 1 << vm_type != 0 {
            let vm = Vm::create(&kvm, vm_type)?;
            if vm.capability(KVM_CAP_GUEST_MEMFD) > 0 {
                vms.push(vm);
            }
        }
    }
    if vms.is_empty() {
        return Err(Unavailable::Missing(Capability::VmType(VmType::SwProtected)).into());
    }
    Ok(vms)
}

/// The guest_memfd flags that this VM takes; kernels before 6.18 have none.
pub fn guest_memfd_flags(vm: &Vm) -> u64 {
    u64::try_from(vm.capability(KVM_CAP_GUEST_MEMFD_FLAGS)).unwrap_or(0)
}
