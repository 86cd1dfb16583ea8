//! The list of discards that are owed and are not done at once.

use std::time::{Duration, Instant};

use hypervisor::PageState;

use crate::memory::guarded::PageRange;

/// What is owed.
#[derive(Default)]
pub(super) struct Owed {
    pub(super) entries: Vec<Entry>,
    pub(super) next: u64,
    /// Discards that were done or tried.
    pub(super) attempts: u64,
    pub(super) failures: u64,
    pub(super) closed: bool,
}

/// A debt in the list.
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) pages: PageRange,
    /// The side that the pages have left.
    pub(super) side: PageState,
    pub(super) stage: Stage,
    /// How often it failed. Only the first time is told.
    pub(super) failures: u64,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing is owed: its holder keeps the pages from being converted.
    Kept,
    /// Its holder decides what becomes of it, or is doing it.
    Held,
    /// Anybody may do it, since then.
    Queued(Instant),
    /// Somebody does it.
    Running,
    /// It failed then; anybody may try again.
    Failed(Instant),
}

impl Stage {
    /// Since when it has waited for anybody to do it.
    pub(super) fn idle_since(self) -> Option<Instant> {
        match self {
            Self::Queued(since) | Self::Failed(since) => Some(since),
            Self::Kept | Self::Held | Self::Running => None,
        }
    }
}

impl Owed {
    /// Enters a debt, and returns its number.
    pub(super) fn push(&mut self, pages: PageRange, side: PageState, stage: Stage) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entries.push(Entry { id, pages, side, stage, failures: 0 });
        id
    }

    pub(super) fn find(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.id == id)
    }

    /// Bytes that wait for the thread or for another attempt.
    pub(super) fn held_back(&self) -> u64 {
        self.bytes(|stage| stage.idle_since().is_some())
    }

    pub(super) fn bytes(&self, of: impl Fn(Stage) -> bool) -> u64 {
        self.entries.iter().filter(|entry| of(entry.stage)).map(|entry| entry.pages.bytes()).sum()
    }

    /// Something for the thread to do; what failed is tried again after so long.
    pub(super) fn next_work(&self, retry: Duration) -> Option<u64> {
        let due = |entry: &&Entry| match entry.stage {
            Stage::Queued(_) => true,
            Stage::Failed(since) => since.elapsed() >= retry,
            Stage::Kept | Stage::Held | Stage::Running => false,
        };
        self.entries.iter().find(due).map(|entry| entry.id)
    }

    /// What has waited for the longest, if that is at least so long.
    pub(super) fn overdue_work(&self, overdue: Duration) -> Option<u64> {
        let idle = self.entries.iter().filter_map(|entry| Some((entry.stage.idle_since()?, entry.id)));
        let (since, id) = idle.min()?;
        (since.elapsed() >= overdue).then_some(id)
    }
}

impl Entry {
    /// Whether the conversion that owes this, and that is of some of these pages, may be undone.
    pub(super) fn is_undecided(&self, pages: PageRange) -> bool {
        self.stage == Stage::Held && self.pages.overlaps(pages)
    }
}
