//! The signal that makes a vCPU's thread leave the guest.
#![expect(unsafe_code, reason = "a thread's handle is what a signal is sent to")]

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{Error, Result};

/// A thread that runs a vCPU. It is forgotten before the thread ends.
#[derive(Debug)]
pub(super) struct VcpuThread(libc::pthread_t);

impl VcpuThread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: it has no preconditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// Sends it the signal.
    pub(super) fn interrupt(&self) {
        if let Err(error) = self.kill(SIGRTMIN()) {
            tracing::warn!("cannot interrupt vCPU thread {:#x}: {error}", self.0);
        }
    }
}

// SAFETY: the handle is a thread's, which takes it out of the list where others find it, under the list's lock, before it
// ends (`Control::leave`).
unsafe impl Killable for VcpuThread {
    fn pthread_handle(&self) -> libc::pthread_t {
        self.0
    }
}

/// Makes the signal harmless. Its only purpose is to interrupt what a thread waits for in the kernel.
pub(super) fn handle() -> Result<()> {
    register_signal_handler(SIGRTMIN(), on_signal)
        .map_err(|errno| Error::system("handle the signal that interrupts vCPUs")(errno.into()))
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
