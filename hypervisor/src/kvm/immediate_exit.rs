//! The one byte of a vCPU's run page that others than its own thread write: `immediate_exit`.
//!
//! It is reached through a mapping of its own, so it may be kept longer than the vCPU, and no reference to the page that
//! the vCPU's thread has is ever in the way. Cost: one mapping of a page for each vCPU; it keeps the kernel's vCPU alive.
#![expect(unsafe_code, reason = "the page is shared with the kernel and with the vCPU's thread")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::{Interrupter, PAGE_SIZE};

/// The first page of a vCPU's descriptor, which begins with its `kvm_run`.
#[derive(Debug)]
pub(super) struct ImmediateExit(NonNull<u8>);

// SAFETY: the mapping is owned, and only an atomic in it is used.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    pub(super) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed.
        let descriptor = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let page = unsafe { mmap(std::ptr::null_mut(), PAGE_SIZE as usize, protection, flags, descriptor, 0) }?;
        NonNull::new(page.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Interrupter for ImmediateExit {
    fn set(&self, on: bool) {
        const { assert!(offset_of!(kvm_run, immediate_exit) < PAGE_SIZE as usize) };
        // SAFETY: the byte lies in the page.
        let byte = unsafe { self.0.add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the mapping lives as long as `self`. The kernel reads the byte as a whole, and nobody else in this
        // process touches it but through an `ImmediateExit`.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.store(on.into(), Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own. Unmapping one page of it can't fail.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), PAGE_SIZE as usize) };
    }
}
