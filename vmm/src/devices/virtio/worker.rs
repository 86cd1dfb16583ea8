//! A thread that works for a device whenever one of its descriptors is ready, and that can be paused and ended.
//!
//! Guarantees:
//! * After [`Worker::pause`], and after a worker was dropped, its service is not running and touches nothing. What arrives
//!   meanwhile is not lost: its descriptors stay ready.
//! * Both wait for what the service is at. A service that has much to do asks [`Sources::is_called_away`] between the parts
//!   of it, and leaves the rest for later.
//! * A service that panics ends its worker, with a line in the log, and nothing else.
//!
//! Cost: one thread, one epoll and one eventfd each.

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

/// A thread that works for a device. Dropped, it ends.
pub struct Worker {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
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
}

impl Worker {
    /// Starts a thread for this service. `set_up` names the descriptors that it waits for from the start.
    ///
    /// # Errors
    /// No thread or descriptor to be had, or what `set_up` says.
    pub fn start<S: Service>(
        name: &str,
        mut service: S,
        set_up: impl FnOnce(&mut S, &Sources) -> io::Result<()>,
    ) -> io::Result<Self> {
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
        Ok(Self { control, thread: Some(thread) })
    }

    /// Comes back when the service stands still.
    pub fn pause(&self) {
        self.control.tell(|state| state.pause = true);
        let mut state = self.control.state();
        while !(state.resting || state.ended) {
            state = self.control.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the service go on.
    pub fn resume(&self) {
        self.control.tell(|state| (state.pause, state.resting) = (false, false));
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

impl Drop for Worker {
    fn drop(&mut self) {
        self.control.tell(|state| state.end = true);
        if let Some(thread) = self.thread.take() {
            // A panic of its own was reported when it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Counts what it reads from a pipe; panics at a zero, ends at a one.
    struct Counter(OwnedFd, Arc<AtomicU64>);

    impl Service for Counter {
        fn ready(&mut self, token: u64, _: &Sources) -> ControlFlow<()> {
            assert_eq!(token, 7);
            let mut byte = [0];
            rustix::io::read(&self.0, &mut byte).unwrap();
            self.1.fetch_add(1, Ordering::SeqCst);
            match byte[0] {
                0 => panic!("as the test wants it"),
                1 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }

    fn counter() -> (Worker, OwnedFd, Arc<AtomicU64>) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let set_up = |service: &mut Counter, sources: &Sources| sources.add(&service.0, 7, EventFlags::IN);
        let worker = Worker::start("counter", Counter(read, count.clone()), set_up).unwrap();
        (worker, write, count)
    }

    fn wait_until(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(30), "it does not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn nothing_runs_while_paused_and_nothing_is_lost() {
        let (worker, pipe, count) = counter();
        rustix::io::write(&pipe, &[9]).unwrap();
        wait_until(|| count.load(Ordering::SeqCst) == 1);
        for round in 0..20 {
            worker.pause();
            rustix::io::write(&pipe, &[9, 9]).unwrap();
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(count.load(Ordering::SeqCst), 1 + 2 * round);
            worker.resume();
            wait_until(|| count.load(Ordering::SeqCst) == 3 + 2 * round);
        }
    }

    #[test]
    fn a_worker_that_has_ended_can_be_paused_and_dropped() {
        for last in [0, 1] {
            let (worker, pipe, count) = counter();
            rustix::io::write(&pipe, &[last]).unwrap();
            wait_until(|| count.load(Ordering::SeqCst) == 1);
            worker.pause();
            worker.resume();
        }
    }

    /// Has always more to do, until it is called away.
    struct Busy(OwnedFd, Arc<AtomicU64>);

    impl Service for Busy {
        fn ready(&mut self, _: u64, sources: &Sources) -> ControlFlow<()> {
            self.1.fetch_add(1, Ordering::SeqCst);
            while !sources.is_called_away() {
                std::thread::yield_now();
            }
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn a_service_that_has_much_to_do_is_called_away_and_comes_back() {
        let wake = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let set_up = |service: &mut Busy, sources: &Sources| sources.add(&service.0, 7, EventFlags::IN);
        let worker = Worker::start("busy", Busy(wake, count.clone()), set_up).unwrap();
        for round in 1..5 {
            wait_until(|| count.load(Ordering::SeqCst) == round);
            worker.pause();
            worker.resume();
        }
        wait_until(|| count.load(Ordering::SeqCst) == 5);
        drop(worker);
    }

    #[test]
    fn a_paused_worker_ends_when_it_is_dropped() {
        let (worker, _pipe, _) = counter();
        worker.pause();
        drop(worker);
    }
}
