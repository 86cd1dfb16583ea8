//! What is owed by one guest, and doing it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hypervisor::{Backing, PageState, Vm};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::FailureObserver;
use super::at_once::AtOnce;
use super::owed::{Owed, Stage};
use crate::memory::guarded::PageRange;

/// How often a discard that a signal interrupted is begun again at once.
const INTERRUPTIONS: u32 = 100;

/// What all of this is about.
pub(super) struct State {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) shared: Backing,
    pub(super) private: Option<Backing>,
    /// The most bytes that may be held back by the queue.
    pub(super) limit: u64,
    pub(super) at_once: AtOnce,
    pub(super) owed: Mutex<Owed>,
    /// How many debts the list has. Whoever has seen a state that was published has seen the debts of before.
    pub(super) count: AtomicUsize,
    /// How many threads are converting or discarding something large at the moment.
    pub(super) busy: AtomicUsize,
    /// Something was settled.
    pub(super) settled: Condvar,
    /// There is work for the thread.
    pub(super) work: Condvar,
    pub(super) failed: Box<FailureObserver>,
}

impl State {
    /// Enters a debt in the list.
    pub(super) fn list(&self, pages: PageRange, side: PageState, stage: Stage) -> u64 {
        let mut owed = self.owed.lock();
        let id = owed.push(pages, side, stage);
        self.recount(&owed);
        id
    }

    pub(super) fn recount(&self, owed: &Owed) {
        self.count.store(owed.entries.len(), Ordering::Release);
    }

    pub(super) fn remove(&self, owed: &mut Owed, id: u64) {
        owed.entries.retain(|entry| entry.id != id);
        self.recount(owed);
        self.settled.notify_all();
    }

    /// Does one discard, without the lock meanwhile.
    pub(super) fn run<'a>(
        &'a self,
        mut owed: MutexGuard<'a, Owed>,
        id: u64,
    ) -> Result<MutexGuard<'a, Owed>, hypervisor::Error> {
        let Some(entry) = owed.find(id) else { return Ok(owed) };
        entry.stage = Stage::Running;
        let (pages, side) = (entry.pages, entry.side);
        // It is decided now.
        self.settled.notify_all();
        drop(owed);
        let result = self.discard(pages, side);
        self.finish(id, result)
    }

    /// Records what came of a discard.
    pub(super) fn finish(
        &self,
        id: u64,
        result: hypervisor::Result<()>,
    ) -> Result<MutexGuard<'_, Owed>, hypervisor::Error> {
        let mut owed = self.owed.lock();
        owed.attempts += 1;
        let Err(error) = result else {
            self.remove(&mut owed, id);
            return Ok(owed);
        };
        owed.failures += 1;
        let mut first = None;
        if let Some(entry) = owed.find(id) {
            entry.stage = Stage::Failed(Instant::now());
            entry.failures += 1;
            first = (entry.failures == 1).then_some((entry.pages, entry.side));
        }
        self.settled.notify_all();
        self.work.notify_one();
        drop(owed);
        if let Some((pages, side)) = first {
            (self.failed)(pages, side, &error);
        }
        Err(error)
    }

    #[inline(always)]
    pub(super) fn discard(&self, pages: PageRange, side: PageState) -> hypervisor::Result<()> {
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
}
