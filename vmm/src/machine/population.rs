//! A thread that populates private memory which the guest is about to touch, ahead of it.
//!
//! Private memory has small pages only, and each that the guest faults in itself costs it an exit. The thread begins while the
//! machine is being built, and goes on beside the guest, which need not wait for it: whichever of the two comes first to a
//! page populates it. It works by a vCPU of its own, that never runs and of which the guest is not told: one that runs can't
//! populate meanwhile.
//!
//! It is only there to save time. What it can't do, the guest does: what a signal interrupts, and all that is left when the
//! machine is paused, which ends it.
//!
//! Guarantee: it has ended when [`Population::end`] returns, and when this is dropped. It is ended before anybody waits for a
//! vCPU, which may be waiting for it. A vCPU that never runs can wait in the call without end if what it knows of
//! the guest's memory has become obsolete (Linux before commit 20a6cff3b283, "Check and free obsolete roots in
//! kvm_mmu_reload()"). Since 6.12 no change of this VM's makes it so, but the administrator who turns KVM's `nx_huge_pages` on
//! or off in these milliseconds does; so it is sent signals until it has ended. Before 6.12 the capability is missing.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hypervisor::x86_64::CpuidEntry;
use hypervisor::{Error, GpaRange, PAGE_SIZE, PreFaultError, Vcpu, Vm};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::signal;
use crate::error::chain;
use crate::memory::GuestRam;

/// How often a thread that is to end is interrupted.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(1);

/// The thread.
#[derive(Debug)]
pub(super) struct Population {
    over: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Population {
    /// Starts to populate what is private of these ranges of RAM, one after the other. The vCPU for it gets this number,
    /// which no other has, and is told that it is a processor like those of the guest.
    pub(super) fn start(
        vm: &dyn Vm,
        id: u8,
        leaves: &[CpuidEntry],
        ram: &Arc<GuestRam>,
        ranges: Vec<GpaRange>,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let start = || {
            // Before there is anybody to send the signal to.
            signal::handle().map_err(|error| chain(&error))?;
            let vcpu = vm.create_vcpu(id).and_then(|vcpu| vcpu.set_cpuid(leaves).map(|()| vcpu));
            let vcpu = vcpu.map_err(|error| chain(&error))?;
            let (ram, over) = (ram.clone(), over.clone());
            let body = move || populate(&ram, &*vcpu, &ranges, &over);
            std::thread::Builder::new().name("populate".into()).spawn(body).map_err(|error| error.to_string())
        };
        let thread: Result<_, String> = start();
        if let Err(error) = &thread {
            tracing::warn!("the guest boots more slowly, for it populates its memory by itself: {error}");
        }
        Self { over, thread: Mutex::new(thread.ok()) }
    }

    /// One that does this, until it is told to end.
    #[cfg(test)]
    pub(super) fn of(body: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || body(&told));
        Self { over, thread: Mutex::new(Some(thread)) }
    }

    /// Ends it; returns when it has ended.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        // Whoever else ends it waits here until it has.
        if let Some(thread) = self.thread().take() {
            // A signal may come between its look at `over` and the call that it is to interrupt.
            while !thread.is_finished() {
                if let Err(error) = thread.kill(SIGRTMIN()) {
                    tracing::warn!("cannot interrupt the thread that populates memory: {error}");
                }
                std::thread::sleep(SIGNAL_INTERVAL);
            }
            // A panic of its own was reported when it happened.
            let _ = thread.join();
        }
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Population {
    fn drop(&mut self) {
        self.end();
    }
}

fn populate(ram: &GuestRam, vcpu: &dyn Vcpu, ranges: &[GpaRange], over: &AtomicBool) {
    for range in ranges {
        match ram.populate(*range, || !over.load(Ordering::Relaxed), |part| populate_all(vcpu, part)) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => {
                tracing::debug!("the guest populates the rest of its memory from {range} on by itself");
                return;
            }
            Err(error) => {
                tracing::warn!("the guest populates the rest of its memory by itself, and slowly: {}", chain(&error));
                return;
            }
        }
    }
}

/// Populates a range of the guest's: all of it, or as much as nobody interrupts.
fn populate_all(vcpu: &dyn Vcpu, range: GpaRange) -> hypervisor::Result<()> {
    let mut done = 0;
    while done < range.len() {
        let rest = GpaRange::new(range.start() + done, range.len() - done)?;
        match vcpu.pre_fault(rest) {
            // At least a page each time, so this ends.
            Ok(size) => done += size.max(PAGE_SIZE),
            Err(Error::PreFault { source: PreFaultError::Interrupted | PreFaultError::Again, .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RamOptions;
    use arch::x86_64::{Isolation, MemoryLayout};
    use hypervisor::VmType;
    use hypervisor::faults::{Failure, Operation};
    use hypervisor::model::ModelHypervisor;

    fn pages(first: u64, count: u64) -> GpaRange {
        GpaRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }

    /// Lets the thread do all that it will.
    fn finish(population: Population) {
        population.thread().take().unwrap().join().unwrap();
    }

    #[test]
    fn ranges_are_populated_one_after_the_other_until_one_fails() {
        let hypervisor = ModelHypervisor::new();
        let vm = hypervisor.create(VmType::SwProtected).unwrap();
        let layout = MemoryLayout::new(Isolation::Software, 4 << 20, 48).unwrap();
        let ram = Arc::new(GuestRam::new(vm.clone(), layout, RamOptions::default()).unwrap());
        ram.make_all_private().unwrap();
        finish(Population::start(&*vm, 1, &[], &ram, vec![pages(0, 2), pages(512, 100)]));
        assert_eq!(hypervisor.faults().calls(Operation::PreFault), 3);
        // What is interrupted is left to the guest, and all others are populated.
        hypervisor.faults().fail(Operation::PreFault, Failure::new(libc::EINTR));
        finish(Population::start(&*vm, 3, &[], &ram, vec![pages(700, 1), pages(800, 1)]));
        assert_eq!(hypervisor.faults().calls(Operation::PreFault), 5);
        hypervisor.faults().fail(Operation::PreFault, Failure::new(libc::EFAULT));
        finish(Population::start(&*vm, 2, &[], &ram, vec![pages(700, 1), pages(800, 1)]));
        assert_eq!(hypervisor.faults().calls(Operation::PreFault), 6);
        // There is such a vCPU, so there is no thread, and that is all.
        assert!(Population::start(&*vm, 2, &[], &ram, vec![pages(700, 1)]).thread().is_none());
    }
}
