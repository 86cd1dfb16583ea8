//! Workers that are paused, called away and ended.

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

fn counter() -> (Workers, OwnedFd, Arc<AtomicU64>) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let set_up = |service: &mut Counter, sources: &Sources| sources.add(&service.0, 7, EventFlags::IN);
    let mut workers = Workers::default();
    workers.start("counter", Counter(read, count.clone()), set_up).unwrap();
    (workers, write, count)
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
    let mut worker = Workers::default();
    worker.start("busy", Busy(wake, count.clone()), set_up).unwrap();
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

/// Workers with requests that end only once all of them are called away: none ends, where one is waited for before another
/// one is asked.
pub(crate) struct Crowd {
    size: u64,
    begun: AtomicU64,
    called_away: AtomicU64,
    ended: AtomicU64,
}

struct Member {
    crowd: Arc<Crowd>,
    /// Readable for ever.
    work: OwnedFd,
    requests: u64,
}

impl Service for Member {
    fn ready(&mut self, _: u64, sources: &Sources) -> ControlFlow<()> {
        let Self { crowd, requests, .. } = self;
        while !sources.is_called_away() {
            crowd.begun.fetch_add(1, Ordering::SeqCst);
            *requests += 1;
            wait_until(|| sources.is_called_away());
            crowd.called_away.fetch_add(1, Ordering::SeqCst);
            wait_until(|| crowd.called_away.load(Ordering::SeqCst) >= *requests * crowd.size);
            crowd.ended.fetch_add(1, Ordering::SeqCst);
        }
        ControlFlow::Continue(())
    }
}

impl Crowd {
    pub(crate) fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, begun: AtomicU64::new(0), called_away: AtomicU64::new(0), ended: AtomicU64::new(0) })
    }

    pub(crate) fn join(self: &Arc<Self>, workers: &mut Workers) {
        let work = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let set_up = |member: &mut Member, sources: &Sources| sources.add(&member.work, 7, EventFlags::IN);
        workers.start("member", Member { crowd: self.clone(), work, requests: 0 }, set_up).unwrap();
    }

    /// Waits until each is at a request, which is its last one of so many.
    pub(crate) fn wait_for_requests(&self, each: u64) {
        wait_until(|| self.begun.load(Ordering::SeqCst) == each * self.size);
    }

    /// How many requests have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }
}

#[test]
fn all_are_asked_before_one_is_waited_for_and_none_takes_up_anything_new() {
    type Step = fn(&mut Workers);
    let last: [Step; 3] = [Workers::end, |workers| drop(std::mem::take(workers)), |workers| workers.ask_to_end()];
    for end in last {
        let (crowd, mut workers) = (Crowd::new(4), Workers::default());
        (0..4).for_each(|_| crowd.join(&mut workers));
        for round in 1..4 {
            crowd.wait_for_requests(round);
            workers.pause();
            assert_eq!(crowd.ended(), 4 * round);
            workers.resume();
        }
        crowd.wait_for_requests(4);
        end(&mut workers);
        workers.end();
        assert_eq!(crowd.ended(), 16);
    }
}
