//! Discards: giving back the memory of the side that pages have left.
//!
//! A conversion *owes* a discard from the moment its pages have changed state ([`Discards::owe`], under the lock that
//! publishes the state) until it is *settled*. Small debts are settled at once, by whoever converted. Large ones are
//! queued for a thread of its own, so that they run behind the reply to the guest, as long as no more than the limit is
//! held back; beyond it, whoever converts settles its own.
//!
//! Guarantees:
//! * Pages that are owed are never converted: [`Discards::settle_all_in`] comes first, and does the work itself rather than
//!   wait for the queue. So no discard ever meets pages that are in use again.
//! * A discard that fails stays owed. It is tried again about once a second, and before its pages are converted, which is
//!   refused as long as it fails. More than the limit of such debts refuses all conversions that would add to them.
//! * Memory held beyond what the guest has is at most the limit, one piece for each thread that converts, and what the
//!   host fails to take back.
//!
//! Cost: a mutex and a short list; one wake-up of the thread for each large discard.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor::{Backing, PageState, Vm};

use super::guarded::PageRange;

/// Discards of fewer bytes are done at once: to hand them over would cost as much.
const AT_ONCE: u64 = 256 << 10;

/// How long the thread waits before it tries again what failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait for somebody else's discard before looking again whether to give up.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often a discard that a signal interrupted is begun again at once.
const INTERRUPTIONS: u32 = 100;

/// Told of a discard that failed.
pub type FailureObserver = dyn Fn(PageRange, PageState, &hypervisor::Error) + Send + Sync;

/// Figures about discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiscardStatistics {
    /// Bytes that pages have left and that are not given back yet.
    pub owed_bytes: u64,
    /// How often a discard failed.
    pub failures: u64,
}

/// A discard that is owed. Whoever holds it must settle or forgive it.
#[must_use = "the pages can't be converted again until this is settled or forgiven"]
#[derive(Debug)]
pub struct Debt(u64);

/// The discards of one guest.
pub struct Discards {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    vm: Arc<dyn Vm>,
    shared: Backing,
    private: Option<Backing>,
    /// The most bytes that may be held back by the queue.
    limit: u64,
    owed: Mutex<Owed>,
    /// Something was settled.
    settled: Condvar,
    /// There is work for the thread.
    work: Condvar,
    failed: Box<FailureObserver>,
}

#[derive(Default)]
struct Owed {
    entries: Vec<Entry>,
    next: u64,
    failures: u64,
    closed: bool,
}

#[derive(Clone)]
struct Entry {
    id: u64,
    pages: PageRange,
    /// The side that the pages have left.
    side: PageState,
    stage: Stage,
    /// How often it failed. Only the first time is told.
    failures: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its holder decides what becomes of it.
    Held,
    /// Anybody may do it.
    Queued,
    /// Somebody does it.
    Running,
    /// It failed; anybody may try again from then on.
    Failed(Instant),
}

impl Owed {
    fn find(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.id == id)
    }

    /// Bytes that wait for the thread or for another attempt.
    fn held_back(&self) -> u64 {
        self.bytes(|stage| matches!(stage, Stage::Queued | Stage::Failed(_)))
    }

    fn bytes(&self, of: impl Fn(Stage) -> bool) -> u64 {
        self.entries.iter().filter(|entry| of(entry.stage)).map(|entry| entry.pages.bytes()).sum()
    }

    /// Something for the thread to do.
    fn next_work(&self) -> Option<u64> {
        let due = |entry: &&Entry| match entry.stage {
            Stage::Queued => true,
            Stage::Failed(since) => since.elapsed() >= RETRY_INTERVAL,
            Stage::Held | Stage::Running => false,
        };
        self.entries.iter().find(due).map(|entry| entry.id)
    }
}

impl Discards {
    /// The discards of a guest with these backings. `limit` is the most bytes that the queue may hold back.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn new(
        vm: Arc<dyn Vm>,
        shared: Backing,
        private: Option<Backing>,
        limit: u64,
        failed: Box<FailureObserver>,
    ) -> std::io::Result<Self> {
        // Where nothing is ever converted, there is nothing for a thread to do.
        let converts = private.is_some();
        let state = Arc::new(State {
            vm,
            shared,
            private,
            limit,
            owed: Mutex::default(),
            settled: Condvar::new(),
            work: Condvar::new(),
            failed,
        });
        let thread = if converts {
            let state = state.clone();
            Some(std::thread::Builder::new().name("discard".into()).spawn(move || state.work())?)
        } else {
            None
        };
        Ok(Self { state, thread })
    }

    /// Records that pages have left a side. Call it under the lock that publishes their state, so that nobody converts them
    /// in between.
    pub fn owe(&self, pages: PageRange, side: PageState) -> Debt {
        let mut owed = self.state.owed();
        let id = owed.next;
        owed.next += 1;
        owed.entries.push(Entry { id, pages, side, stage: Stage::Held, failures: 0 });
        Debt(id)
    }

    /// Gives the pages' memory back, now or soon.
    pub fn settle(&self, debt: Debt) {
        let state = &self.state;
        let mut owed = state.owed();
        let held_back = owed.held_back();
        let Some(entry) = owed.find(debt.0) else { return };
        let bytes = entry.pages.bytes();
        if bytes >= AT_ONCE && held_back + bytes <= state.limit && self.thread.is_some() {
            entry.stage = Stage::Queued;
            state.work.notify_one();
            state.settled.notify_all();
        } else {
            // A failure stays recorded, and is reported there.
            drop(state.run(owed, debt.0));
        }
    }

    /// Gives the pages' memory back now, however much it is: before anybody can use that side again.
    pub fn settle_now(&self, debt: Debt) {
        // A failure stays recorded, and is reported there.
        drop(self.state.run(self.state.owed(), debt.0));
    }

    /// The conversion is undone: the pages are where they were.
    pub fn forgive(&self, debt: Debt) {
        let mut owed = self.state.owed();
        owed.entries.retain(|entry| entry.id != debt.0);
        self.state.settled.notify_all();
    }

    /// Whether it is not decided yet what becomes of a debt for some of these pages: the conversion may be undone.
    pub fn is_undecided(&self, pages: PageRange) -> bool {
        let owed = self.state.owed();
        owed.entries.iter().any(|entry| entry.stage == Stage::Held && entry.pages.overlaps(pages))
    }

    /// Waits until that is decided. Returns whether it had to. `give_up` is asked now and then.
    pub fn wait_until_decided(&self, pages: PageRange, give_up: impl Fn() -> bool) -> bool {
        let mut waited = false;
        let mut owed = self.state.owed();
        while !give_up() && owed.entries.iter().any(|e| e.stage == Stage::Held && e.pages.overlaps(pages)) {
            waited = true;
            owed = self.state.settled.wait_timeout(owed, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        waited
    }

    /// Whether anything is owed for these pages.
    pub fn is_owed(&self, pages: PageRange) -> bool {
        self.state.owed().entries.iter().any(|entry| entry.pages.overlaps(pages))
    }

    /// Settles what is owed for these pages, and waits for what others are settling. `give_up` is asked now and then.
    ///
    /// # Errors
    /// A discard that fails; it stays owed.
    pub fn settle_all_in(&self, pages: PageRange, give_up: impl Fn() -> bool) -> Result<(), hypervisor::Error> {
        let mut owed = self.state.owed();
        loop {
            let mut overlapping = owed.entries.iter().filter(|entry| entry.pages.overlaps(pages)).peekable();
            if overlapping.peek().is_none() {
                return Ok(());
            }
            let idle = overlapping.find(|entry| matches!(entry.stage, Stage::Queued | Stage::Failed(_)));
            owed = match idle.map(|entry| entry.id) {
                Some(id) => self.state.run(owed, id)?,
                None if give_up() => return Ok(()),
                None => self.state.settled.wait_timeout(owed, PATIENCE).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Tries what failed once more if it is more than the limit.
    ///
    /// # Errors
    /// A discard that fails again, with the limit exceeded still.
    pub fn check_limit(&self) -> Result<(), hypervisor::Error> {
        let mut owed = self.state.owed();
        while owed.bytes(|stage| matches!(stage, Stage::Failed(_))) > self.state.limit {
            let failed = owed.entries.iter().find(|entry| matches!(entry.stage, Stage::Failed(_)));
            let Some(id) = failed.map(|entry| entry.id) else { break };
            owed = self.state.run(owed, id)?;
        }
        Ok(())
    }

    /// Figures.
    pub fn statistics(&self) -> DiscardStatistics {
        let owed = self.state.owed();
        DiscardStatistics { owed_bytes: owed.bytes(|_| true), failures: owed.failures }
    }
}

impl State {
    fn owed(&self) -> MutexGuard<'_, Owed> {
        // Nothing in here panics half-way.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one discard, without the lock meanwhile.
    fn run<'a>(&'a self, mut owed: MutexGuard<'a, Owed>, id: u64) -> Result<MutexGuard<'a, Owed>, hypervisor::Error> {
        let Some(entry) = owed.find(id) else { return Ok(owed) };
        entry.stage = Stage::Running;
        let Entry { pages, side, .. } = *entry;
        drop(owed);
        let result = self.discard(pages, side);
        let mut owed = self.owed();
        self.settled.notify_all();
        let Err(error) = result else {
            owed.entries.retain(|entry| entry.id != id);
            return Ok(owed);
        };
        owed.failures += 1;
        let first = owed.find(id).is_some_and(|entry| {
            entry.stage = Stage::Failed(Instant::now());
            entry.failures += 1;
            entry.failures == 1
        });
        self.work.notify_one();
        drop(owed);
        if first {
            (self.failed)(pages, side, &error);
        }
        Err(error)
    }

    fn discard(&self, pages: PageRange, side: PageState) -> hypervisor::Result<()> {
        let backing = match side {
            PageState::Shared => Some(&self.shared),
            PageState::Private => self.private.as_ref(),
        };
        let Some(backing) = backing else { return Ok(()) };
        let mut attempts = 0;
        loop {
            match self.vm.discard(backing, pages.offset(), pages.bytes()) {
                Err(error) if error.errno() == Some(libc::EINTR) && attempts < INTERRUPTIONS => attempts += 1,
                result => return result,
            }
        }
    }

    /// The thread's life.
    fn work(&self) {
        let mut owed = self.owed();
        while !owed.closed {
            owed = match owed.next_work() {
                // What failed is recorded and reported there.
                Some(id) => self.run(owed, id).unwrap_or_else(|_| self.owed()),
                None if owed.held_back() == 0 => self.work.wait(owed).unwrap_or_else(PoisonError::into_inner),
                None => self.work.wait_timeout(owed, RETRY_INTERVAL).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

impl Drop for Discards {
    fn drop(&mut self) {
        self.state.owed().closed = true;
        self.state.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends behind the discard at hand. A panic of its own was reported when it happened.
            let _ = thread.join();
        }
    }
}
