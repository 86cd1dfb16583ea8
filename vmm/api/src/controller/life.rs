//! A machine that runs, on a thread of its own, and is built anew after each reset.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::{Result, Stop};

use crate::host::{Built, Guest, Host};

/// What the thread works with.
pub(super) struct Work {
    pub(super) host: Arc<dyn Host>,
    pub(super) events: Arc<EventMonitor>,
    pub(super) spec: Arc<Mutex<vmm::VmConfig>>,
    pub(super) output: Arc<Output>,
    /// Told how the machine ended, unless somebody ended it.
    pub(super) ended: Box<dyn FnOnce(Result<Stop>) + Send>,
}

/// A machine and its thread.
pub(super) struct Run {
    slot: Arc<Slot>,
    thread: JoinHandle<()>,
}

/// Where the thread puts the guest.
#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    changed: Condvar,
}

#[derive(Default)]
struct SlotState {
    guest: Option<Arc<dyn Guest>>,
    /// How many guests there have been.
    guests: u64,
    /// Somebody ends it.
    ending: bool,
    /// The thread is done.
    over: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// Starts it; returns when it runs.
    pub(super) fn start(machine: Box<dyn Built>, work: Work) -> std::io::Result<Self> {
        let slot = Arc::new(Slot::default());
        let thread = {
            let slot = slot.clone();
            std::thread::Builder::new().name("machine".into()).spawn(move || run(machine, work, &slot))?
        };
        let run = Self { slot, thread };
        drop(run.slot.wait(|state| state.over || state.guests > 0));
        Ok(run)
    }

    /// The guest; `None` once the machine is over. Waits while it is built anew.
    pub(super) fn guest(&self) -> Option<Arc<dyn Guest>> {
        self.slot.wait(|state| state.over || state.guest.is_some()).guest.clone()
    }

    /// Resets the machine; returns when it is built anew. Whether it was.
    pub(super) fn reboot(&self) -> bool {
        let Some(guest) = self.guest() else { return false };
        let before = lock(&self.slot.state).guests;
        guest.reset();
        drop(guest);
        !self.slot.wait(|state| state.over || state.guests > before).over
    }

    /// Ends the machine; returns when nothing is left of it.
    pub(super) fn end(self) {
        let guest = {
            let mut state = lock(&self.slot.state);
            state.ending = true;
            state.guest.clone()
        };
        if let Some(guest) = guest {
            guest.stop();
        }
        let _ = self.thread.join();
    }
}

impl Slot {
    fn wait(&self, ready: impl Fn(&SlotState) -> bool) -> MutexGuard<'_, SlotState> {
        let state = lock(&self.state);
        self.changed.wait_while(state, |state| !ready(state)).unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut SlotState)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }
}

fn run(machine: Box<dyn Built>, work: Work, slot: &Arc<Slot>) {
    let Work { host, events, spec, output, ended } = work;
    let mut machine = machine;
    let result = loop {
        tracing::info!("running with isolation={}", machine.isolation());
        let stop = machine.run(&events, &mut |guest| {
            slot.change(|state| {
                // The end may have been asked for before there was a machine to end.
                if state.ending {
                    guest.stop();
                }
                state.guest = Some(guest);
                state.guests += 1;
            });
        });
        // The handle holds the old guest's memory.
        slot.change(|state| state.guest = None);
        match stop {
            Ok(Stop::Reset) if !lock(&slot.state).ending => {
                tracing::info!("the machine was reset: booting it anew");
                let config = lock(&spec).clone();
                match host.build(&config, &output, &events) {
                    Ok(built) => machine = built,
                    Err(error) => break Err(error),
                }
            }
            stop => break stop,
        }
    };
    let ending = lock(&slot.state).ending;
    slot.change(|state| state.over = true);
    if !ending {
        ended(result);
    } else if let Err(error) = result {
        tracing::warn!("the machine failed while it ended: {error}");
    }
}
