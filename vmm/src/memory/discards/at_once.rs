//! Small discards, which whoever converted does at once: what is being discarded, in a few words that need no lock.
//!
//! An entry is made under the lock that publishes states, like every debt, and ends with the discard. So whoever holds that
//! lock sees each entry of pages whose state it sees. Others may miss one that is just being made, and look again under
//! the lock before they rely on it.
//!
//! Cost: two atomic operations for each discard. There is room for 32; more go into the list.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::guarded::PageRange;

const SLOTS: usize = 32;

/// What the word grows by when one ends.
const ENDED: u64 = 1 << SLOTS;

/// Discards that are being done.
pub(super) struct AtOnce {
    /// A bit for each slot that is taken, and above them how many ended.
    word: AtomicU64,
    /// Pages as words; zero where there is none.
    slots: [AtomicU64; SLOTS],
}

/// A discard that is being done.
#[must_use = "the pages can't be converted again until it is ended"]
#[derive(Debug)]
pub(super) struct Slot(usize);

impl AtOnce {
    pub(super) fn new() -> Self {
        Self { word: AtomicU64::new(0), slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Begins one, if there is room for it.
    pub(super) fn begin(&self, pages: PageRange) -> Option<Slot> {
        loop {
            let free = (!self.word.load(Ordering::Acquire)).trailing_zeros() as usize;
            let slot = self.slots.get(free)?;
            if self.word.fetch_or(1 << free, Ordering::AcqRel) >> free & 1 == 0 {
                slot.store(pages.to_word(), Ordering::Release);
                return Some(Slot(free));
            }
        }
    }

    /// Ends one. What failed has been recorded elsewhere before.
    pub(super) fn end(&self, Slot(index): Slot) {
        self.slots[index].store(0, Ordering::Release);
        self.word.fetch_add(ENDED - (1 << index), Ordering::Release);
    }

    /// The pages of all.
    #[inline]
    pub(super) fn pages(&self) -> impl Iterator<Item = PageRange> {
        let mut taken = self.word.load(Ordering::Acquire) % ENDED;
        std::iter::from_fn(move || {
            let index = taken.trailing_zeros() as usize;
            let slot = self.slots.get(index)?;
            taken &= taken.wrapping_sub(1);
            Some(slot.load(Ordering::Acquire))
        })
        .filter_map(PageRange::from_word)
    }

    /// Whether one is of some of these pages.
    #[inline]
    pub(super) fn overlaps(&self, pages: PageRange) -> bool {
        self.pages().any(|other| other.overlaps(pages))
    }

    /// How many ended so far, modulo 2^32.
    pub(super) fn ended(&self) -> u64 {
        self.word.load(Ordering::Relaxed) / ENDED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_is_found_until_it_ends_and_there_is_room_for_so_many() {
        let table = AtOnce::new();
        let page = |first: u64| PageRange::new(first, first + 1).unwrap();
        let slots: Vec<_> = (0..SLOTS as u64).map(|first| table.begin(page(first)).unwrap()).collect();
        assert!(table.begin(page(99)).is_none());
        assert!(!table.overlaps(page(99)));
        for (first, slot) in slots.into_iter().enumerate() {
            assert!(table.overlaps(page(first as u64)));
            table.end(slot);
            assert!(!table.overlaps(page(first as u64)));
            assert_eq!(table.ended(), first as u64 + 1);
        }
        assert_eq!(table.pages().count(), 0);
        assert!(table.begin(page(99)).is_some());
    }
}
