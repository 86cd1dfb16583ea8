//! Steering a machine that runs, from any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::x86_64::Isolation;
use hypervisor::Vm;

use super::{Control, Population, Stop};
use crate::devices::Devices;
use crate::devices::manager::DeviceManager;
use crate::error::chain;
use crate::memory::{GuestRam, MemoryStatistics};
use crate::{Error, Result};

/// Steers a machine, or looks into it. It holds the guest's memory for as long as it lives, but not the machine's threads.
#[derive(Clone)]
pub struct MachineHandle {
    pub(super) isolation: Isolation,
    pub(super) ram: Arc<GuestRam>,
    pub(super) devices: Arc<Devices>,
    pub(super) control: Arc<Control>,
    pub(super) vm: Arc<dyn Vm>,
    pub(super) transitions: Arc<Transitions>,
    pub(super) population: Option<Arc<Population>>,
}

/// Pausing and resuming, one at a time.
#[derive(Debug, Default)]
pub(super) struct Transitions {
    /// Held by whoever pauses or resumes.
    pause: Mutex<Pause>,
    /// Whether the machine stands still, for whoever won't wait for that.
    still: AtomicBool,
}

/// Whether the machine stands still.
#[derive(Debug, Default)]
enum Pause {
    #[default]
    Running,
    /// Since the guest's clock showed this.
    Paused { clock: Option<u64> },
}

impl MachineHandle {
    fn transition(&self) -> MutexGuard<'_, Pause> {
        // Nothing in here panics half-way.
        self.transitions.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What makes its memory unmappable.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Ends the machine, with [`Stop::Requested`].
    pub fn stop(&self) {
        self.control.end(Ok(Stop::Requested));
    }

    /// Ends the machine with [`Stop::Reset`]: whoever runs it builds a new one.
    pub fn reset(&self) {
        self.control.end(Ok(Stop::Reset));
    }

    /// Makes the machine stand still. When this returns, no vCPU and no device does anything, and nothing is left half done:
    /// a conversion that has to wait for a device is undone, and made anew after [`MachineHandle::resume`]. The guest's
    /// paravirtual clock stands still as well. A machine that is paused stays so.
    ///
    /// # Errors
    /// A machine that ends instead.
    pub fn pause(&self) -> Result<()> {
        let mut pause = self.transition();
        if let Pause::Paused { .. } = *pause {
            return Ok(());
        }
        self.control.pause();
        self.ram.interrupt_conversions();
        self.population.iter().for_each(|population| population.end());
        self.control.wait_until_still()?;
        self.devices.manager.pause();
        let clock = self.vm.clock();
        let clock = clock.inspect_err(|error| tracing::warn!("the guest's clock goes on: {}", chain(error)));
        *pause = Pause::Paused { clock: clock.ok() };
        self.transitions.still.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets a paused machine go on. A machine that runs goes on running.
    ///
    /// # Errors
    /// The hypervisor's, if the guest's clock can't be set; the machine stays paused.
    pub fn resume(&self) -> Result<()> {
        let mut pause = self.transition();
        let Pause::Paused { clock } = *pause else { return Ok(()) };
        if let Some(clock) = clock {
            self.vm.set_clock(clock)?;
        }
        self.transitions.still.store(false, Ordering::Release);
        self.devices.manager.resume();
        self.ram.allow_conversions();
        self.control.resume();
        *pause = Pause::Running;
        Ok(())
    }

    /// Whether the machine stands still. One that is about to does not yet; this does not wait for it.
    pub fn is_paused(&self) -> bool {
        self.transitions.still.load(Ordering::Acquire)
    }

    /// Gives all processors that run a non-maskable interrupt; in a paused machine, when it goes on.
    ///
    /// # Errors
    /// A machine that has ended.
    pub fn nmi(&self) -> Result<()> {
        self.control.nmi()
    }

    /// Pushes the power button: the guest switches itself off if it listens.
    ///
    /// # Errors
    /// A machine that has ended; otherwise the devices'.
    pub fn power_button(&self) -> Result<()> {
        if self.control.is_ending() {
            return Err(Error::Ended);
        }
        self.devices.manager.power_button()
    }

    /// The devices on its PCI bus.
    pub fn devices(&self) -> &Arc<DeviceManager> {
        &self.devices.manager
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Figures about its memory.
    pub fn memory_statistics(&self) -> MemoryStatistics {
        self.ram.statistics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::signal;
    use crate::memory::conversion::Policy;
    use crate::vcpu::tests::context;
    use hypervisor::VmType;
    use hypervisor::model::ModelHypervisor;

    fn handle(population: Option<Population>) -> MachineHandle {
        let context = context(Policy::default());
        let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
        let (ram, devices, control) = (context.ram, context.devices, context.control);
        let (isolation, transitions, population) = (Isolation::None, Arc::default(), population.map(Arc::new));
        MachineHandle { isolation, ram, devices, control, vm, transitions, population }
    }

    #[test]
    fn a_pause_ends_the_population_of_memory() {
        signal::handle().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let handle = handle(Some(Population::of(move |told| {
            while !told.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            ended.store(true, Ordering::Release);
        })));
        handle.pause().unwrap();
        assert!(over.load(Ordering::Acquire));
    }

    #[test]
    fn whoever_asks_whether_it_is_paused_waits_for_no_transition() {
        let handle = handle(None);
        let transition = handle.transition();
        assert!(!handle.is_paused());
        drop(transition);
        handle.pause().unwrap();
        let transition = handle.transition();
        assert!(handle.is_paused());
        drop(transition);
        handle.resume().unwrap();
        assert!(!handle.is_paused());
    }
}
