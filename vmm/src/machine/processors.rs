//! The threads of a machine's vCPUs.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use hypervisor::Vcpu;

use super::{Control, Population, spawn};
use crate::memory::GuestRam;
use crate::vcpu::{self, VcpuContext};
use crate::{Error, Result};

/// Running vCPUs. Dropped, they end.
pub(super) struct Processors {
    control: Arc<Control>,
    /// What their conversions wait for must not hold their end up,
    ram: Arc<GuestRam>,
    /// nor must this, which they may be waiting for.
    population: Option<Arc<Population>>,
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
        population: Option<Arc<Population>>,
        begin: impl FnOnce(),
    ) -> Result<Self> {
        let mut processors = Self { control: control.clone(), ram: ram.clone(), population, threads: Vec::new() };
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
        self.population.iter().for_each(|population| population.end());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::machine::{Stop, signal};
    use crate::memory::conversion::Policy;
    use crate::vcpu::tests::{context, context_in};
    use arch::x86_64::map::{RESET_PORT, RESET_VALUE};
    use hypervisor::VmType;
    use hypervisor::model::{Action, ModelHypervisor};

    #[test]
    fn no_processor_runs_before_the_machine_begins() {
        signal::handle().unwrap();
        let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
        let context = context_in(vm.clone(), Policy::default());
        let vcpu = hypervisor::Vm::create_vcpu(&*vm, 0).unwrap();
        vm.script(0).push(Action::PortWrite { port: RESET_PORT, data: vec![RESET_VALUE] });
        let (control, ram) = (context.control.clone(), context.ram.clone());
        let begin = || {
            // Time in which a processor that did not wait would reset the machine.
            std::thread::sleep(Duration::from_millis(100));
            assert!(!control.is_ending());
        };
        let processors = Processors::start([(vcpu, context)], &control, &ram, None, begin).unwrap();
        while !control.wait_for_end(None) {}
        processors.join();
        assert_eq!(control.take_outcome().unwrap(), Stop::Reset);
    }

    #[test]
    fn a_processor_that_waits_for_population_does_not_hold_the_end_up() {
        signal::handle().unwrap();
        let context = context(Policy::default());
        let (populating, populated) = mpsc::channel::<()>();
        let population = Population::of(move |over| {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(populating);
        });
        let waiting = std::thread::spawn(move || assert!(populated.recv().is_err(), "nothing is sent"));
        let processors = Processors {
            control: context.control.clone(),
            ram: context.ram.clone(),
            population: Some(Arc::new(population)),
            threads: vec![waiting],
        };
        context.control.end(Ok(Stop::Requested));
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            processors.join();
            done.send(())
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("the end waits for ever");
    }
}
