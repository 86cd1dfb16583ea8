//! What a machine's threads are told, and how they are reached: run, rest, take an interrupt, end.
//!
//! Each vCPU's thread asks [`Control::before_run`] before it enters the guest. Whoever wants something of it changes the
//! state under the lock, sets the vCPU's `attention`, makes its runs come back ([`Interrupter`]) and sends its thread a
//! signal. None of that is lost: the thread takes back the interruption first and looks at `attention` second, so what
//! comes after the look meets a run that comes back at once, and what comes before it is seen.
//!
//! Guarantees:
//! * After [`Control::wait_until_still`], no vCPU runs guest code or works at an exit until [`Control::resume`].
//! * The machine ends once; of several reasons the worst counts ([`severity`]).
//!
//! Cost: two atomic operations for each run of a vCPU. Who rests sleeps until there is something new.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::Interrupter;

use super::Stop;
use super::helpers::Helpers;
use super::signal::VcpuThread;
use crate::memory::ConversionError;
use crate::{Error, Result};

/// See the module's page.
pub struct Control {
    processors: Vec<Processor>,
    state: Mutex<State>,
    /// There is something new for whoever waits to go on: the vCPUs' threads, and the main one.
    changed: Condvar,
    /// A vCPU stands still that did not. Apart from `changed`, since those who say it wait for that themselves: they would
    /// wake each other for ever.
    stands: Condvar,
    helpers: Helpers,
    /// How often a wait for `changed` has come to an end.
    #[cfg(test)]
    awakenings: std::sync::atomic::AtomicU64,
}

struct Processor {
    /// There is something new in the state.
    attention: AtomicBool,
    interrupter: Arc<dyn Interrupter>,
}

struct State {
    /// Why the machine ends.
    outcome: Option<Result<Stop>>,
    /// The main thread has taken the outcome.
    over: bool,
    paused: bool,
    /// Processors other than the first may run.
    launched: bool,
    vcpus: Vec<VcpuState>,
}

#[derive(Default)]
struct VcpuState {
    thread: Option<VcpuThread>,
    /// Neither resting, nor not begun, nor ended.
    active: bool,
    /// It stood still for a pause, and the guest has not been told.
    rested: bool,
    /// It is to get a non-maskable interrupt.
    nmi: bool,
}

/// What a vCPU's thread is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Enter the guest.
    Run {
        /// It stood still for a pause.
        rested: bool,
        /// After giving it a non-maskable interrupt.
        nmi: bool,
    },
    /// Come to an end.
    End,
}

impl Control {
    /// For vCPUs that these interrupt, in order of their numbers. If not `launched`, all but the first wait for
    /// [`Control::launch`].
    pub(crate) fn new(interrupters: Vec<Arc<dyn Interrupter>>, launched: bool) -> Self {
        let vcpus = interrupters.iter().map(|_| VcpuState::default()).collect();
        let processor = |interrupter| Processor { attention: AtomicBool::new(true), interrupter };
        Self {
            processors: interrupters.into_iter().map(processor).collect(),
            state: Mutex::new(State { outcome: None, over: false, paused: false, launched, vcpus }),
            changed: Condvar::new(),
            stands: Condvar::new(),
            helpers: Helpers::default(),
            #[cfg(test)]
            awakenings: Default::default(),
        }
    }

    /// Threads that wait for others than the vCPUs.
    pub(crate) fn helpers(&self) -> &Helpers {
        &self.helpers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        self.awakenings.fetch_add(1, Ordering::Relaxed);
        state
    }

    /// Makes vCPU `id` look at the state.
    fn alert(&self, state: &State, id: usize) {
        let processor = &self.processors[id];
        processor.attention.store(true, Ordering::SeqCst);
        processor.interrupter.set(true);
        if let Some(thread) = &state.vcpus[id].thread {
            thread.interrupt();
        }
    }

    fn alert_all(&self, state: &State) {
        (0..self.processors.len()).for_each(|id| self.alert(state, id));
        self.changed.notify_all();
        self.stands.notify_all();
    }

    /// Makes vCPU `id` leave the guest for a moment.
    pub(crate) fn interrupt(&self, id: u8) {
        let state = self.state();
        self.alert(&state, id.into());
    }

    /// The calling thread runs vCPU `id` from here on.
    pub(crate) fn enter(&self, id: u8) {
        self.state().vcpus[usize::from(id)].thread = Some(VcpuThread::current());
    }

    /// The calling thread no longer runs vCPU `id`.
    pub(crate) fn leave(&self, id: u8) {
        self.state().vcpus[usize::from(id)] = VcpuState::default();
        self.stands.notify_all();
    }

    /// What vCPU `id` is to do next. Rests here for as long as it must not run.
    pub(crate) fn before_run(&self, id: u8) -> Order {
        let id = usize::from(id);
        let processor = &self.processors[id];
        processor.interrupter.set(false);
        if !processor.attention.load(Ordering::SeqCst) {
            return Order::Run { rested: false, nmi: false };
        }
        let mut state = self.state();
        while state.outcome.is_none() && !state.over {
            if !state.paused && (id == 0 || state.launched) {
                processor.attention.store(false, Ordering::SeqCst);
                let vcpu = &mut state.vcpus[id];
                vcpu.active = true;
                let (rested, nmi) = (std::mem::take(&mut vcpu.rested), std::mem::take(&mut vcpu.nmi));
                return Order::Run { rested, nmi };
            }
            let paused = state.paused;
            let vcpu = &mut state.vcpus[id];
            vcpu.rested |= paused;
            if std::mem::replace(&mut vcpu.active, false) {
                self.stands.notify_all();
            }
            state = self.wait(state);
        }
        Order::End
    }

    /// Rests in the middle of an exit, as [`Control::before_run`] does, and tells the next run of it. Returns whether the
    /// vCPU goes on afterwards.
    pub(crate) fn rest(&self, id: u8) -> bool {
        match self.before_run(id) {
            Order::End => false,
            Order::Run { rested, nmi } => {
                let mut state = self.state();
                let vcpu = &mut state.vcpus[usize::from(id)];
                vcpu.rested |= rested;
                vcpu.nmi |= nmi;
                self.processors[usize::from(id)].attention.store(true, Ordering::SeqCst);
                true
            }
        }
    }

    /// Lets time pass on the thread of vCPU `id`, but no longer than nobody wants anything of it.
    pub(crate) fn nap(&self, id: u8, time: Duration) {
        let state = self.state();
        if !self.processors[usize::from(id)].attention.load(Ordering::SeqCst) {
            drop(self.changed.wait_timeout(state, time));
        }
    }

    /// Lets the processors other than the first run.
    pub(crate) fn launch(&self) {
        self.state().launched = true;
        self.changed.notify_all();
    }

    /// Ends the machine for this reason, or for the one that it ends for already if that is as bad.
    pub(crate) fn end(&self, outcome: Result<Stop>) {
        let mut state = self.state();
        if state.over {
            return;
        }
        if state.outcome.as_ref().is_none_or(|before| severity(&outcome) > severity(before)) {
            state.outcome = Some(outcome);
        }
        self.alert_all(&state);
    }

    /// Wakes whoever waits, to look again.
    pub(crate) fn nudge(&self) {
        drop(self.state());
        self.changed.notify_all();
    }

    /// Waits for the end, or a nudge, or for so long. Returns whether the machine ends.
    pub(crate) fn wait_for_end(&self, limit: Option<Duration>) -> bool {
        let state = self.state();
        if state.outcome.is_some() {
            return true;
        }
        let state = match limit {
            Some(limit) => self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0,
            None => self.wait(state),
        };
        state.outcome.is_some()
    }

    /// Takes why the machine has ended. Call it once all threads have.
    pub(crate) fn take_outcome(&self) -> Result<Stop> {
        let mut state = self.state();
        state.over = true;
        state.outcome.take().unwrap_or(Ok(Stop::Requested))
    }

    /// Whether the machine ends.
    pub(crate) fn is_ending(&self) -> bool {
        let state = self.state();
        state.over || state.outcome.is_some()
    }

    /// Whether the machine is paused, or about to be.
    pub(crate) fn is_paused(&self) -> bool {
        self.state().paused
    }

    /// Tells all vCPUs to rest.
    pub(crate) fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        self.alert_all(&state);
    }

    /// Waits until all vCPUs rest.
    ///
    /// # Errors
    /// A machine that ends instead.
    pub(crate) fn wait_until_still(&self) -> Result<()> {
        let mut state = self.state();
        loop {
            if state.over || state.outcome.is_some() {
                return Err(Error::Ended);
            }
            if !state.vcpus.iter().any(|vcpu| vcpu.active) {
                return Ok(());
            }
            state = self.stands.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets all vCPUs go on.
    pub(crate) fn resume(&self) {
        self.state().paused = false;
        self.changed.notify_all();
    }

    /// Gives all processors a non-maskable interrupt, in a paused machine once it goes on.
    ///
    /// # Errors
    /// A machine that has ended.
    pub(crate) fn nmi(&self) -> Result<()> {
        let mut state = self.state();
        if state.over || state.outcome.is_some() {
            return Err(Error::Ended);
        }
        state.vcpus.iter_mut().for_each(|vcpu| vcpu.nmi = true);
        self.alert_all(&state);
        Ok(())
    }
}

/// How bad an end is. A machine that has been left inconsistent must never pass for one that was switched off, and what
/// merely follows from another vCPU's end must not hide its reason.
fn severity(outcome: &Result<Stop>) -> u8 {
    match outcome {
        Err(Error::Conversion(ConversionError::Stopped)) => 0,
        Ok(_) => 1,
        Err(Error::Conversion(ConversionError::Inconsistent { .. })) => 3,
        Err(_) => 2,
    }
}

#[cfg(test)]
mod tests;
