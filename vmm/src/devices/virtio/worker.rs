//! The threads of a device: each works whenever one of its descriptors is ready, and all of them can be paused and ended.
//!
//! Guarantees:
//! * After [`Workers::pause`] and [`Workers::end`], and after they were dropped, none of their services is running and touches
//!   anything. What arrives meanwhile is not lost: descriptors stay ready.
//! * All three wait for what the services are at. A service that has much to do asks [`Sources::is_called_away`] between the
//!   parts of it, and leaves the rest for later.
//! * All workers of a device are asked before one is waited for, so that a device with many of them takes as long as its
//!   slowest and not as all together: nobody takes up anything new while another one finishes. A device has no other way to
//!   them. Whoever has several devices asks all of them first ([`Workers::ask_to_pause`], [`Workers::ask_to_end`]).
//! * A service that panics ends its worker, with a line in the log, and nothing else.
//!
//! Cost: one thread, one epoll and one eventfd each.

#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

/// What a worker does.
pub trait Service: Send + 'static {
    /// The descriptor of this token is ready. Break ends the worker.
    fn ready(&mut self, token: u64, sources: &Sources) -> ControlFlow<()>;
}

/// The descriptors that a worker waits for: level-triggered, unless the flags say otherwise.
pub struct Sources {
    epoll: OwnedFd,
    control: Arc<Control>,
}

/// The token of the worker's own eventfd.
const CONTROL: u64 = u64::MAX;

/// How many descriptors that are ready are taken at a time.
const BATCH: usize = 16;

impl Sources {
    /// Waits for this descriptor, too. `token` is what the service is told: any number but the highest.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&self, descriptor: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, descriptor, EventData::new_u64(token), flags)?)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// The system's.
    pub fn modify(&self, descriptor: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, descriptor, EventData::new_u64(token), flags)?)
    }

    /// Waits for this descriptor no more.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, descriptor)?)
    }

    /// Whether somebody waits for the worker to stand still or to end. What is left to do can wait until it goes on: its
    /// descriptor has to stay ready for that, or become ready again.
    pub fn is_called_away(&self) -> bool {
        self.control.called_away.load(Ordering::Acquire)
    }
}

/// The threads that work for a device. Dropped, they end.
#[derive(Default)]
pub struct Workers(Vec<Worker>);

struct Worker {
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

struct Control {
    state: Mutex<State>,
    changed: Condvar,
    wake: OwnedFd,
    /// Whether the state wants the service to stand still, to be asked without the lock.
    called_away: AtomicBool,
}

#[derive(Default)]
struct State {
    pause: bool,
    end: bool,
    /// The service is not running, and does not begin to as long as `pause` stands.
    resting: bool,
    ended: bool,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        self.called_away.store(state.pause || state.end, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        // It can't fail: the counter would have to be at its end.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Rests for as long as that is wanted. Returns whether to go on after that.
    fn rest(&self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut state = self.state();
        while state.pause && !state.end {
            state.resting = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.resting = false;
        !state.end
    }

    fn wait_until_still(&self) {
        let mut state = self.state();
        while !(state.resting || state.ended) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Workers {
    /// Starts a thread for this service. `set_up` names the descriptors that it waits for from the start.
    ///
    /// # Errors
    /// No thread or descriptor to be had, or what `set_up` says.
    pub fn start<S: Service>(
        &mut self,
        name: &str,
        mut service: S,
        set_up: impl FnOnce(&mut S, &Sources) -> io::Result<()>,
    ) -> io::Result<()> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (state, changed, called_away) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        let control = Arc::new(Control { state, changed, wake, called_away });
        let sources = Sources { epoll: epoll::create(CreateFlags::CLOEXEC)?, control: control.clone() };
        sources.add(&control.wake, CONTROL, EventFlags::IN)?;
        set_up(&mut service, &sources)?;
        let own = control.clone();
        let thread = std::thread::Builder::new().name(name.replace('\0', "")).spawn(move || {
            let work = AssertUnwindSafe(|| work(service, &sources, &own));
            if std::panic::catch_unwind(work).is_err() {
                tracing::error!("the thread of a device panicked: the device works no more");
            }
            own.state().ended = true;
            own.changed.notify_all();
        })?;
        self.0.push(Worker { control, thread });
        Ok(())
    }

    fn tell(&self, change: impl Fn(&mut State)) {
        self.0.iter().for_each(|worker| worker.control.tell(&change));
    }

    /// Asks all services to stand still, and waits for none.
    pub fn ask_to_pause(&self) {
        self.tell(|state| state.pause = true);
    }

    /// Comes back when all services stand still.
    pub fn pause(&self) {
        self.ask_to_pause();
        self.0.iter().for_each(|worker| worker.control.wait_until_still());
    }

    /// Lets the services go on.
    pub fn resume(&self) {
        self.tell(|state| (state.pause, state.resting) = (false, false));
    }

    /// Asks all services to end, and waits for none. They can't be kept from it any more.
    pub fn ask_to_end(&self) {
        self.tell(|state| state.end = true);
    }

    /// Comes back when all services have ended and are gone.
    pub fn end(&mut self) {
        self.ask_to_end();
        for worker in self.0.drain(..) {
            // A panic of its own was reported when it happened.
            let _ = worker.thread.join();
        }
    }
}

fn work(mut service: impl Service, sources: &Sources, control: &Control) {
    let mut events = Vec::with_capacity(BATCH);
    loop {
        events.clear();
        match epoll::wait(&sources.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!("a device can't wait for its descriptors, and works no more: {error}");
                return;
            }
        }
        for event in &events {
            // Whatever else is ready stays so.
            if sources.is_called_away() && !control.rest() {
                return;
            }
            let goes_on = match event.data.u64() {
                CONTROL => control.rest(),
                token => service.ready(token, sources).is_continue(),
            };
            if !goes_on {
                return;
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}
