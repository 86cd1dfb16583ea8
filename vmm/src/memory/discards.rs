//! Discards: giving back the memory of the side that pages have left.
//!
//! A conversion *owes* a discard from the moment its pages have changed state ([`Discards::owe`], under the lock that
//! publishes the state) until it is *settled*. Small debts are settled at once, by whoever converted. Large ones are
//! queued for a thread of its own, so that they run behind the reply to the guest, as long as no more than the limit is
//! held back; beyond it, whoever converts settles its own.
//!
//! The thread works only when nothing else is being converted or discarded, and was for [`QUIET`]. Beside a conversion it would be
//! in its way: setting attributes and discarding take the same locks in the kernel, and a guest that converts all of its
//! memory pays two to six times the price if both go on at once. A guest that never rests must not keep memory for ever,
//! though: once a discard has waited for a second, the thread does it all the same, one in each second.
//!
//! Guarantees:
//! * Pages that are owed are never converted: [`Discards::settle_all_in`] comes first, and does the work itself rather than
//!   wait for the queue. So no discard ever meets pages that are in use again.
//! * A discard that fails stays owed. It is tried again about once a second (beside steady conversions, one of all that
//!   failed or wait is), and before its pages are converted, which is refused as long as it fails. More than the limit of such debts refuses all conversions that would add to them.
//! * Memory held beyond what the guest has is at most the limit, one piece for each thread that converts, and what the
//!   host fails to take back.
//!
//! Pages that must stay as they are for a moment are *kept* ([`Discards::keep`]): an entry of the list for which nothing is done.
//!
//! Cost: a few atomic operations for a small discard, which enters no list unless it fails; for a large one a mutex and a
//! short list, neither of which is touched to find that nothing is owed, and one wake-up of the thread where it meets an
//! empty queue.
//!
//! | room | what is in it |
//! |---|---|
//! | `at_once` | small discards that are being done |
//! | `owed` | the list of all others |
//! | `state` | both together, and doing what is owed |
//! | `thread` | when the thread works |

mod at_once;
mod owed;
mod state;
mod thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use hypervisor::{Backing, PageState, Vm};

use super::guarded::PageRange;
use at_once::{AtOnce, Slot};
use owed::Stage;
use state::State;

pub use thread::QUIET;

/// Discards of fewer bytes are done at once: to hand them over would cost as much.
pub(super) const AT_ONCE: u64 = 256 << 10;

/// How long to wait for somebody else's discard before looking again whether to give up.
const PATIENCE: Duration = Duration::from_millis(100);

/// The same where it is a small one, which takes microseconds.
const NAP: Duration = Duration::from_micros(20);

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
pub struct Debt {
    pages: PageRange,
    side: PageState,
    place: Place,
}

/// Where a debt is recorded.
#[derive(Debug)]
enum Place {
    /// It is small, and its holder settles it at once.
    AtOnce(Slot),
    /// In the list, under this number.
    Listed(u64),
}

/// Pages that are not converted as long as this is held, by the rule for pages that are owed.
#[must_use = "it is over when this is dropped"]
pub struct Keep<'a> {
    state: &'a State,
    id: u64,
}

impl Drop for Keep<'_> {
    fn drop(&mut self) {
        self.state.remove(&mut self.state.owed.lock(), self.id);
    }
}

/// Somebody is converting or discarding these pages, and the thread had better wait.
#[must_use = "it is over when this is dropped"]
pub struct Busy<'a>(Option<&'a AtomicUsize>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(busy) = self.0 {
            busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The discards of one guest.
pub struct Discards {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
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
            at_once: AtOnce::new(),
            owed: Mutex::default(),
            count: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
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

    /// Records that pages leave a side. Call it under the lock that publishes their state: whoever sees the new state under
    /// that lock finds the debt.
    pub fn owe(&self, pages: PageRange, side: PageState) -> Debt {
        let id = self.state.list(pages, side, Stage::Held);
        Debt { pages, side, place: Place::Listed(id) }
    }

    /// The same by a conversion that is never undone, and that settles it as soon as it has let go of the lock.
    #[inline(always)]
    pub fn owe_for_good(&self, pages: PageRange, side: PageState) -> Debt {
        let slot = if pages.bytes() < AT_ONCE { self.state.at_once.begin(pages) } else { None };
        match slot {
            Some(slot) => Debt { pages, side, place: Place::AtOnce(slot) },
            None => self.owe(pages, side),
        }
    }

    /// Keeps pages in the state that they have. Call it as [`Discards::owe`]; whoever wants to convert them waits until it is
    /// over, so it had better be soon.
    pub fn keep(&self, pages: PageRange) -> Keep<'_> {
        // Which side it names makes no difference: nothing is done.
        Keep { state: &self.state, id: self.state.list(pages, PageState::Private, Stage::Kept) }
    }

    /// Says that these pages are being converted, as far as that keeps the kernel busy.
    pub fn busy(&self, pages: PageRange) -> Busy<'_> {
        // What is small is over before the thread would begin.
        let busy = (pages.bytes() >= AT_ONCE).then_some(&self.state.busy);
        if let Some(busy) = busy {
            busy.fetch_add(1, Ordering::Relaxed);
        }
        Busy(busy)
    }

    /// Gives the pages' memory back, now or soon.
    #[inline(always)]
    pub fn settle(&self, debt: Debt) {
        let bytes = debt.pages.bytes();
        let id = match debt.place {
            Place::Listed(id) if bytes >= AT_ONCE && self.thread.is_some() => id,
            _ => return self.settle_now(debt),
        };
        let state = &self.state;
        let mut owed = state.owed.lock();
        let held_back = owed.held_back();
        if held_back + bytes > state.limit {
            drop(owed);
            return self.settle_now(debt);
        }
        if let Some(entry) = owed.find(id) {
            entry.stage = Stage::Queued(Instant::now());
        }
        state.settled.notify_all();
        if held_back == 0 {
            state.work.notify_one();
        }
    }

    /// Gives the pages' memory back now, however much it is: before anybody can use that side again.
    #[inline(always)]
    pub fn settle_now(&self, debt: Debt) {
        let Debt { pages, side, place } = debt;
        let busy = self.busy(pages);
        let result = self.state.discard(pages, side);
        drop(busy);
        match place {
            // A failure stays recorded, and is reported there.
            Place::Listed(id) => drop(self.state.finish(id, result)),
            Place::AtOnce(slot) => {
                let failed = result.is_err().then(|| self.state.list(pages, side, Stage::Running));
                self.state.at_once.end(slot);
                if let Some(id) = failed {
                    drop(self.state.finish(id, result));
                }
            }
        }
    }

    /// The conversion is undone: the pages are where they were.
    pub fn forgive(&self, debt: Debt) {
        match debt.place {
            Place::Listed(id) => self.state.remove(&mut self.state.owed.lock(), id),
            Place::AtOnce(slot) => self.state.at_once.end(slot),
        }
    }

    /// Whether the list is empty, as far as this thread can know.
    fn is_free(&self) -> bool {
        self.state.count.load(Ordering::Acquire) == 0
    }

    /// Whether it is not decided yet what becomes of a debt for some of these pages: the conversion may be undone.
    pub fn is_undecided(&self, pages: PageRange) -> bool {
        !self.is_free() && self.state.owed.lock().entries.iter().any(|entry| entry.is_undecided(pages))
    }

    /// Waits until that is decided. Returns whether it had to. `give_up` is asked now and then.
    pub fn wait_until_decided(&self, pages: PageRange, give_up: impl Fn() -> bool) -> bool {
        let mut waited = false;
        if self.is_free() {
            return waited;
        }
        let mut owed = self.state.owed.lock();
        while !give_up() && owed.entries.iter().any(|entry| entry.is_undecided(pages)) {
            waited = true;
            self.state.settled.wait_for(&mut owed, PATIENCE);
        }
        waited
    }

    /// Whether anything is owed for these pages.
    #[inline(always)]
    pub fn is_owed(&self, pages: PageRange) -> bool {
        self.state.at_once.overlaps(pages)
            || !self.is_free() && self.state.owed.lock().entries.iter().any(|entry| entry.pages.overlaps(pages))
    }

    /// Owes the shared side of those of these pages for which no discard is ahead, and adds to `busy` those for which one is
    /// under way: it may have passed them already. Call it as [`Discards::owe`].
    pub fn owe_rest(&self, pages: PageRange, busy: &mut Vec<PageRange>) -> Vec<Debt> {
        let mut parts: Vec<_> = {
            let owed = self.state.owed.lock();
            let known = owed.entries.iter().filter(|entry| entry.stage != Stage::Kept).filter_map(|entry| {
                let ahead = entry.side == PageState::Shared && entry.stage.idle_since().is_some();
                Some((entry.pages.intersection(pages)?, ahead))
            });
            let known = known.chain(self.state.at_once.pages().filter_map(|at| Some((at.intersection(pages)?, false))));
            known.collect()
        };
        busy.extend(parts.iter().filter(|(_, ahead)| !ahead).map(|(part, _)| *part));
        parts.sort_unstable_by_key(|(part, _)| part.first());
        let mut first = pages.first();
        let mut free = Vec::new();
        for (part, _) in parts {
            free.extend(PageRange::new(first, part.first()));
            first = first.max(part.end());
        }
        free.extend(PageRange::new(first, pages.end()));
        free.into_iter().map(|part| self.owe(part, PageState::Shared)).collect()
    }

    /// Settles what is owed for these pages, and waits for what others are settling. `give_up` is asked now and then.
    ///
    /// # Errors
    /// A discard that fails; it stays owed.
    pub fn settle_all_in(&self, pages: PageRange, give_up: impl Fn() -> bool) -> Result<(), hypervisor::Error> {
        // One that fails is in the list before it is none of these any more.
        while self.state.at_once.overlaps(pages) && !give_up() {
            std::thread::sleep(NAP);
        }
        let mut owed = self.state.owed.lock();
        loop {
            let mut overlapping = owed.entries.iter().filter(|entry| entry.pages.overlaps(pages)).peekable();
            if overlapping.peek().is_none() {
                return Ok(());
            }
            let idle = overlapping.find(|entry| entry.stage.idle_since().is_some());
            match idle.map(|entry| entry.id) {
                Some(id) => owed = self.state.run(owed, id)?,
                None if give_up() => return Ok(()),
                None => drop(self.state.settled.wait_for(&mut owed, PATIENCE)),
            }
        }
    }

    /// Tries what failed once more if it is more than the limit.
    ///
    /// # Errors
    /// A discard that fails again, with the limit exceeded still.
    #[inline(always)]
    pub fn check_limit(&self) -> Result<(), hypervisor::Error> {
        if self.is_free() {
            return Ok(());
        }
        let mut owed = self.state.owed.lock();
        while owed.bytes(|stage| matches!(stage, Stage::Failed(_))) > self.state.limit {
            let failed = owed.entries.iter().find(|entry| matches!(entry.stage, Stage::Failed(_)));
            let Some(id) = failed.map(|entry| entry.id) else { break };
            owed = self.state.run(owed, id)?;
        }
        Ok(())
    }

    /// Figures.
    pub fn statistics(&self) -> DiscardStatistics {
        let owed = self.state.owed.lock();
        let at_once: u64 = self.state.at_once.pages().map(PageRange::bytes).sum();
        DiscardStatistics { owed_bytes: owed.bytes(|stage| stage != Stage::Kept) + at_once, failures: owed.failures }
    }
}

impl Drop for Discards {
    fn drop(&mut self) {
        self.state.owed.lock().closed = true;
        self.state.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends behind the discard at hand. A panic of its own was reported when it happened.
            let _ = thread.join();
        }
    }
}
