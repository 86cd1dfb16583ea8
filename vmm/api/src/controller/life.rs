//! A machine that runs, on a thread of its own, and is built anew after each reset.
//!
//! Guarantee: whoever waits for the thread learns when it is done, even if it panics.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde_json::json;
use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::{Result, Stop};

use super::conflict;
use crate::ApiError;
use crate::host::{Built, Guest, Host};

/// What the thread works with.
pub(super) struct Work {
    pub(super) host: Arc<dyn Host>,
    pub(super) events: Arc<EventMonitor>,
    pub(super) spec: Arc<Mutex<vmm::VmConfig>>,
    pub(super) output: Arc<Output>,
    /// Told how the machine ended, unless somebody ended it, or it never ran.
    pub(super) ended: Box<dyn FnOnce(Ended) + Send>,
}

impl Work {
    /// Builds the machine, and tells that this begins.
    ///
    /// # Errors
    /// The machine's own.
    pub(super) fn build(&self) -> Result<Box<dyn Built>> {
        self.events.emit("vm", "booting", ());
        let spec = lock(&self.spec).clone();
        self.host.build(&spec, &self.output, &self.events)
    }
}

/// How a machine that ran has ended.
pub(super) enum Ended {
    /// As it says itself.
    Stopped(Result<Stop>),
    /// It was reset, and is not there again.
    NotRebuilt(vmm::Error),
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
    /// Why no guest ever ran.
    not_started: Option<vmm::Error>,
    /// Why a machine that was reset is not there.
    not_rebuilt: Option<ApiError>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// Starts it; returns when it runs.
    ///
    /// # Errors
    /// No thread, or a machine that fails before it runs; nothing is left of it then.
    pub(super) fn start(machine: Box<dyn Built>, work: Work) -> Result<Self> {
        let slot = Arc::new(Slot::default());
        let thread = {
            let slot = slot.clone();
            std::thread::Builder::new().name("machine".into()).spawn(move || live(machine, work, &slot))
        };
        let no_thread = |source| vmm::Error::System { what: "start the machine's thread", source };
        let run = Self { slot, thread: thread.map_err(no_thread)? };
        let not_started = run.slot.wait(|state| state.over || state.guests > 0).not_started.take();
        match not_started {
            None => Ok(run),
            Some(error) => {
                run.end();
                Err(error)
            }
        }
    }

    /// The guest; `None` once the machine is over. Waits while it is built anew.
    pub(super) fn guest(&self) -> Option<Arc<dyn Guest>> {
        self.slot.wait(|state| state.over || state.guest.is_some()).guest.clone()
    }

    /// Resets the machine; returns when it is built anew.
    ///
    /// # Errors
    /// It can't be built anew, or ended for another reason.
    pub(super) fn reboot(&self) -> std::result::Result<(), ApiError> {
        let (guest, before) = {
            // Of one moment: the guest that is reset is the last of so many.
            let state = self.slot.wait(|state| state.over || state.guest.is_some());
            (state.guest.clone(), state.guests)
        };
        if let Some(guest) = guest {
            guest.reset();
        }
        let state = self.slot.wait(|state| state.over || state.guests > before);
        match (state.guests > before, &state.not_rebuilt) {
            (true, _) => Ok(()),
            (false, Some(error)) => Err(error.clone()),
            (false, None) => Err(conflict("the machine ended instead of booting anew: its events say why")),
        }
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

/// The machine's thread: whatever becomes of the machine, whoever waits for it learns that it is over.
fn live(machine: Box<dyn Built>, work: Work, slot: &Slot) {
    let run = std::panic::AssertUnwindSafe(|| run(machine, &work, slot));
    let how = std::panic::catch_unwind(run).unwrap_or_else(|_| {
        let source = std::io::Error::other("its thread panicked: this is a bug");
        Ended::Stopped(Err(vmm::Error::System { what: "go on with the machine", source }))
    });
    let not_rebuilt = match &how {
        Ended::NotRebuilt(error) => Some(ApiError::from_machine("the machine was not built anew", error)),
        Ended::Stopped(_) => None,
    };
    if let Some(error) = &not_rebuilt {
        tracing::error!("{}", error.chain.join(": "));
        work.events.emit("vm", "reboot-failed", json!({ "error": error.chain }));
    }
    let (mut how, mut ending) = (Some(how), false);
    slot.change(|state| {
        state.guest = None;
        state.over = true;
        state.not_rebuilt = not_rebuilt;
        ending = state.ending;
        if state.guests == 0 && matches!(how, Some(Ended::Stopped(Err(_)))) {
            state.not_started = how.take().and_then(Ended::error);
        }
    });
    match how {
        Some(how) if !ending => (work.ended)(how),
        Some(how) => {
            if let Some(error) = how.error() {
                tracing::warn!("the machine failed while it ended: {error}");
            }
        }
        None => {}
    }
}

fn run(machine: Box<dyn Built>, work: &Work, slot: &Slot) -> Ended {
    let (mut machine, mut again) = (machine, false);
    loop {
        tracing::info!("running with isolation={}", machine.isolation());
        let mut runs = false;
        let stop = machine.run(&work.events, &mut |guest| {
            runs = true;
            // Before anybody who waits for it goes on.
            if again {
                work.events.emit("vm", "rebooted", ());
            }
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
            Ok(stop) if stop.is_reset() && !lock(&slot.state).ending => {
                tracing::info!("the machine was reset: booting it anew");
                again = true;
                match work.build() {
                    Ok(built) => machine = built,
                    Err(error) => return Ended::NotRebuilt(error),
                }
            }
            Ok(stop) if stop.is_reset() => {
                // It has told that it is reset, and somebody ends it.
                work.events.emit("vm", "shutdown", ());
                return Ended::Stopped(Ok(stop));
            }
            Err(error) if again && !runs => return Ended::NotRebuilt(error),
            stop => return Ended::Stopped(stop),
        }
    }
}

impl Ended {
    fn error(self) -> Option<vmm::Error> {
        match self {
            Self::Stopped(result) => result.err(),
            Self::NotRebuilt(error) => Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use arch::x86_64::Isolation;

    use super::*;
    use crate::model::ModelHost;

    /// A machine that does this instead of running.
    struct Fails(fn() -> Result<Stop>);

    impl Built for Fails {
        fn isolation(&self) -> Isolation {
            Isolation::None
        }
        fn run(self: Box<Self>, _: &EventMonitor, _: &mut dyn FnMut(Arc<dyn Guest>)) -> Result<Stop> {
            (self.0)()
        }
    }

    /// A machine that panics once it runs.
    struct Panics(Box<dyn Built>);

    impl Built for Panics {
        fn isolation(&self) -> Isolation {
            Isolation::None
        }
        fn run(self: Box<Self>, events: &EventMonitor, started: &mut dyn FnMut(Arc<dyn Guest>)) -> Result<Stop> {
            let _ = self.0.run(events, started);
            panic!("as a test wants it");
        }
    }

    fn config() -> vmm::VmConfig {
        let config = serde_json::json!({ "payload": { "kernel": "/proc/self/exe" }, "memory": { "size": 16 << 20 } });
        let config: crate::types::VmConfig = serde_json::from_value(config).unwrap();
        vmm::VmConfig::try_from(&config).unwrap()
    }

    fn work() -> (Work, mpsc::Receiver<Ended>) {
        let (end, ended) = mpsc::channel();
        let work = Work {
            host: Arc::new(ModelHost::default()),
            events: Arc::new(EventMonitor::new()),
            spec: Arc::new(Mutex::new(config())),
            output: Arc::new(Output::new(vmm::config::SerialConfig::Null)),
            ended: Box::new(move |how| drop(end.send(how))),
        };
        (work, ended)
    }

    #[test]
    fn a_machine_that_fails_before_it_runs_is_not_started() {
        for fails in [|| Err(vmm::Error::Ended), || panic!("as a test wants it")] {
            let (work, ended) = work();
            assert!(Run::start(Box::new(Fails(fails)), work).is_err());
            assert!(ended.recv().is_err(), "its caller is told, and nobody else");
        }
    }

    /// A machine that is reset at the moment when somebody ends it.
    struct IsReset(Box<dyn Built>);

    impl Built for IsReset {
        fn isolation(&self) -> Isolation {
            Isolation::None
        }
        fn run(self: Box<Self>, events: &EventMonitor, started: &mut dyn FnMut(Arc<dyn Guest>)) -> Result<Stop> {
            self.0.run(&EventMonitor::new(), started)?;
            let stop = Ok(Stop::Reset);
            Stop::announce_reset(&stop, events);
            Stop::announce_end(&stop, events);
            stop
        }
    }

    /// Builds machines that fail before they run.
    struct Unwilling;

    impl Host for Unwilling {
        fn check(&self, _: &vmm::VmConfig) -> Result<()> {
            Ok(())
        }
        fn build(&self, _: &vmm::VmConfig, _: &Output, _: &Arc<EventMonitor>) -> Result<Box<dyn Built>> {
            Ok(Box::new(Fails(|| Err(vmm::Error::NoProcessor))))
        }
    }

    fn listen(events: &EventMonitor) -> mpsc::Receiver<String> {
        let (heard, told) = mpsc::channel();
        events.tell(Box::new(move |event| heard.send(event["event"].as_str().unwrap().into()).unwrap()));
        told
    }

    #[test]
    fn a_machine_that_is_reset_while_it_is_ended_is_told_to_be_over() {
        let (work, _ended) = work();
        let told = listen(&work.events);
        let machine = IsReset(work.build().unwrap());
        Run::start(Box::new(machine), work).unwrap().end();
        assert_eq!(told.iter().collect::<Vec<_>>(), ["booting", "rebooting", "shutdown"]);
    }

    #[test]
    fn a_machine_that_fails_before_it_runs_again_was_not_rebooted() {
        let (mut work, ended) = work();
        let told = listen(&work.events);
        let machine = work.build().unwrap();
        work.host = Arc::new(Unwilling);
        let run = Run::start(machine, work).unwrap();
        let error = run.reboot().unwrap_err();
        assert!(error.chain.concat().contains("not built anew"), "{error:?}");
        assert!(matches!(ended.recv().unwrap(), Ended::NotRebuilt(vmm::Error::NoProcessor)));
        run.end();
        let expected = ["booting", "booted", "rebooting", "booting", "reboot-failed"];
        assert_eq!(told.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_machine_that_panics_is_over() {
        let (work, ended) = work();
        let built = work.host.build(&config(), &work.output, &work.events).unwrap();
        let run = Run::start(Box::new(Panics(built)), work).unwrap();
        let error = run.reboot().unwrap_err();
        assert_eq!(error.status, 409);
        assert!(matches!(ended.recv().unwrap(), Ended::Stopped(Err(_))));
        assert!(run.guest().is_none());
        run.end();
    }
}
