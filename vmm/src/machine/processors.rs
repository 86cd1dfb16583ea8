//! The threads of a machine's vCPUs.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use hypervisor::Vcpu;

use super::{Control, spawn};
use crate::memory::GuestRam;
use crate::vcpu::{self, VcpuContext};
use crate::{Error, Result};

/// Running vCPUs. Dropped, they end.
pub(super) struct Processors {
    control: Arc<Control>,
    /// What their conversions wait for must not hold their end up.
    ram: Arc<GuestRam>,
    threads: Vec<JoinHandle<()>>,
}

impl Processors {
    /// Starts a thread for each vCPU. The first one that has a reason to ends the machine. `begin` is called once all threads
    /// are there, before the first of them enters the guest.
    ///
    /// # Errors
    /// No thread to be had; those that have begun have ended again, and `begin` was not called.
    pub(super) fn start(
        vcpus: impl IntoIterator<Item = (Box<dyn Vcpu>, VcpuContext)>,
        control: &Arc<Control>,
        ram: &Arc<GuestRam>,
        begin: impl FnOnce(),
    ) -> Result<Self> {
        let mut processors = Self { control: control.clone(), ram: ram.clone(), threads: Vec::new() };
        // There is nothing behind it; and it is opened before `processors` is dropped, which waits for the threads.
        let gate = Arc::new(RwLock::new(()));
        let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
        for (vcpu, context) in vcpus {
            let (control, gate) = (control.clone(), gate.clone());
            let thread = spawn(&format!("vcpu{}", context.id), move || {
                drop(gate.read());
                run(vcpu, context, &control);
            })?;
            processors.threads.push(thread);
        }
        begin();
        drop(closed);
        Ok(processors)
    }

    /// Waits until all have ended. The machine must be ending.
    pub(super) fn join(mut self) {
        self.join_all();
    }

    fn join_all(&mut self) {
        self.ram.end_conversions();
        for thread in self.threads.drain(..) {
            // A panic was caught on the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.control.end(Ok(super::Stop::Requested));
            self.join_all();
        }
    }
}

fn run(vcpu: Box<dyn Vcpu>, context: VcpuContext, control: &Control) {
    let id = context.id;
    control.enter(id);
    // A panic is a bug, and must end the machine with an error like any other.
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| vcpu::run(vcpu, context)))
        .unwrap_or_else(|_| Err(Error::Vcpu { id, rip: 0, reason: "its thread panicked".into() }));
    match result {
        Ok(Some(stop)) => control.end(Ok(stop)),
        Ok(None) => {}
        Err(error) => control.end(Err(error)),
    }
    control.leave(id);
}
