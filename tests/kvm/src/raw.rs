//! A VM and guest_memfd files that take any argument, legal or not.
//!
//! kvm-ioctls has a wrapper for every ioctl used here; two of them are `unsafe` because a memory slot lets a guest write
//! to `userspace_addr`, and a third returns a bare descriptor. [`Vm`] can't be given a vCPU, so no guest ever runs on
//! its slots and any address is safe.
#![expect(unsafe_code, reason = "slots and mappings with illegal arguments")]

use std::ffi::c_void;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

use kvm_bindings::{
    kvm_create_guest_memfd, kvm_memory_attributes, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VmFd};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// A VM that never runs.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
}

impl Vm {
    /// `KVM_CREATE_VM` with any type number.
    pub fn create(kvm: &Kvm, vm_type: u64) -> Result<Self, Errno> {
        let fd = kvm.create_vm_with_type(vm_type).map_err(errno)?;
        Ok(Self { fd })
    }

    /// `KVM_CHECK_EXTENSION` for this VM: what holds for its type, unlike the system's answer.
    pub fn capability(&self, number: u32) -> i32 {
        self.fd.check_extension_raw(number.into())
    }

    /// `KVM_CREATE_GUEST_MEMFD` with any size and flags.
    pub fn create_guest_memfd(&self, size: u64, flags: u64) -> Result<OwnedFd, Errno> {
        let arguments = kvm_create_guest_memfd { size, flags, ..Default::default() };
        let fd = self.fd.create_guest_memfd(arguments).map_err(errno)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES` with any argument.
    pub fn set_attributes(&self, attributes: kvm_memory_attributes) -> Result<(), Errno> {
        self.fd.set_memory_attributes(attributes).map_err(errno)
    }

    /// `KVM_SET_USER_MEMORY_REGION` with any argument.
    pub fn set_region_v1(&self, region: &kvm_userspace_memory_region) -> Result<(), Errno> {
        // SAFETY: only a vCPU reaches memory through a slot, and this VM has none.
        unsafe { self.fd.set_user_memory_region(*region) }.map_err(errno)
    }

    /// `KVM_SET_USER_MEMORY_REGION2` with any argument.
    pub fn set_region(&self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        // SAFETY: only a vCPU reaches memory through a slot, and this VM has none.
        unsafe { self.fd.set_user_memory_region2(*region) }.map_err(errno)
    }
}

/// A mapping that exists, and that nobody looks into.
#[derive(Debug)]
pub struct Mapping {
    address: *mut c_void,
    length: usize,
}

impl Mapping {
    /// `mmap` of the start of a file, wherever the kernel likes.
    pub fn of(file: impl AsFd, length: usize, flags: MapFlags) -> Result<Self, Errno> {
        let flags = flags.difference(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel picks addresses that nothing else uses.
        let address = unsafe { rustix::mm::mmap(null_mut(), length, access, flags, file, 0) }?;
        Ok(Self { address, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range is ours since `of`, and no reference into it was ever made.
        let unmapped = unsafe { rustix::mm::munmap(self.address, self.length) };
        unmapped.expect("a range that mmap returned can be unmapped");
    }
}

fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}
