//! The Linux implementation, on `/dev/kvm`.
//!
//! Thin: each trait method is one ioctl and a translation. What KVM does beyond its documentation stands at the place
//! where it matters.

mod immediate_exit;
mod injected;
mod interrupts;
mod pre_fault;
mod probe;
mod vcpu;
mod vm;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;

use self::injected::Injected;
use crate::error::API_VERSION;
use crate::x86_64::CpuidEntry;
use crate::{Capability, Error, Hypervisor, MemoryCaps, Result, Vm, VmType};

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";

/// KVM on this host.
#[derive(Debug)]
pub struct KvmHypervisor {
    kvm: Kvm,
    caps: MemoryCaps,
    injected: Injected,
}

impl KvmHypervisor {
    /// Opens `/dev/kvm` and probes what it can do.
    ///
    /// # Errors
    /// No such device, no permission for it, or one that is something else.
    pub fn open() -> Result<Self> {
        let path = Path::new(DEVICE);
        let kvm = Kvm::new_with_path(c"/dev/kvm").map_err(|errno| Error::Open {
            path: path.display().to_string(),
            remedy: match errno.errno() {
                libc::EACCES | libc::EPERM => "join the group that owns it (usually `kvm`), or run as root",
                libc::ENOENT | libc::ENODEV | libc::ENXIO => {
                    "load kvm_amd or kvm_intel and turn virtualization on in the firmware; `cargo lab` needs no KVM"
                }
                _ => "check that KVM works on this host",
            },
            source: io::Error::from(errno),
        })?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(Error::ApiVersion { path: path.display().to_string(), found });
        }
        let caps = probe::probe(&kvm);
        Ok(Self { kvm, caps, injected: Injected::default() })
    }

    /// Operates a VM that was made elsewhere, for a VMM that has one, and vCPUs of its own, and wants guest memory and conversions
    /// from here. The descriptor is duplicated; the VMM goes on using its own.
    ///
    /// # Errors
    /// No descriptor is left.
    ///
    /// # Safety
    /// `vm` is a VM of this host's KVM, of type `vm_type`. No vCPU of it that was made elsewhere runs once the last clone of the
    /// returned VM is dropped, that of a `GuestRam` included: that unmaps what its memory slots show to the guest. Slots that
    /// are used through the returned VM are used in no other way: one that is in use already would be changed.
    #[expect(unsafe_code, reason = "only the caller knows what runs on the VM")]
    pub unsafe fn adopt(&self, vm: &impl AsRawFd, vm_type: VmType) -> Result<Arc<dyn Vm>> {
        // SAFETY: it is a VM's, by this function's own contract, and open for as long as `vm` is borrowed.
        let theirs = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
        let failed = |source| Error::Failed { operation: "take over", subject: "a VM".into(), source };
        let own = theirs.try_clone_to_owned().map_err(failed)?;
        // SAFETY: nobody else has this one, and it is a VM's.
        let fd =
            unsafe { self.kvm.create_vmfd_from_rawfd(own.as_raw_fd()) }.map_err(Error::failed("take over", "a VM"))?;
        // It is `fd`'s now.
        std::mem::forget(own);
        Ok(Arc::new(vm::KvmVm::new(fd, vm_type, self.injected.clone())))
    }

    /// The failures ordered for its VMs and vCPUs.
    #[cfg(feature = "failure-injection")]
    pub fn faults(&self) -> &crate::faults::Faults {
        self.injected.faults()
    }
}

impl Hypervisor for KvmHypervisor {
    fn caps(&self) -> &MemoryCaps {
        &self.caps
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::failed("read", "the supported CPUID"))?;
        Ok(cpuid.as_slice().to_vec())
    }

    fn create_vm(&self, vm_type: VmType) -> Result<Arc<dyn Vm>> {
        let capability = Capability::VmType(vm_type);
        if !self.caps.has(capability) {
            return Err(Error::Missing { capability });
        }
        let fd = self
            .kvm
            .create_vm_with_type(vm_type.number())
            .map_err(Error::failed("create", format!("a VM of type {vm_type}")))?;
        Ok(Arc::new(vm::KvmVm::new(fd, vm_type, self.injected.clone())))
    }
}
