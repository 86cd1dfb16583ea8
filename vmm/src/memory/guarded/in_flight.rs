//! The conversions to private that are in flight: begun, and neither committed nor undone.
//!
//! Their pages are refused to devices already, and still shared. One slot each, written by the one writer, read by
//! anybody without waiting. Every change of a slot is preceded by a new version and followed by another one, so a reader
//! who finds the same version before and after has seen refused bits and slots that belong together, and may keep the
//! slots for as long as the version stays.

use super::pages::PageRange;
use super::sync::{AtomicU64, order};

/// Bits of the version that count the conversions in flight.
const COUNT_BITS: u32 = 16;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// What a version grows by.
const STEP: u64 = 1 << COUNT_BITS;

/// The most slots that there can be.
pub(super) const MAX_SLOTS: usize = COUNT_MASK as usize;

/// The record.
pub(super) struct InFlight {
    version: AtomicU64,
    /// The pages of each conversion, zero where there is none.
    slots: Box<[AtomicU64]>,
}

impl InFlight {
    /// Room for this many conversions at a time, at most [`MAX_SLOTS`].
    pub(super) fn new(capacity: usize) -> Self {
        let slots = (0..capacity.min(MAX_SLOTS)).map(|_| AtomicU64::new(0)).collect();
        Self { version: AtomicU64::new(0), slots }
    }

    /// The version: two equal ones mean that nothing changed between them.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(order::read())
    }

    /// Whether there is none, for the one writer.
    pub(super) fn is_empty(&self) -> bool {
        self.version() & COUNT_MASK == 0
    }

    /// The conversions in flight. Exact if the version is this one afterwards, too.
    ///
    /// A slot whose conversion has just ended may still be seen, so they can't be counted off: all slots are looked at,
    /// unless there is no conversion at all.
    pub(super) fn ranges(&self, version: u64) -> impl Iterator<Item = PageRange> {
        let slots = if version & COUNT_MASK == 0 { &[] } else { &*self.slots };
        slots.iter().filter_map(|slot| PageRange::from_word(slot.load(order::read())))
    }

    /// How many conversions there are, and how many pages they have.
    pub(super) fn totals(&self) -> (u64, u64) {
        loop {
            let version = self.version();
            let (count, pages) = self.ranges(version).fold((0, 0), |(n, pages), range| (n + 1, pages + range.count()));
            if self.version() == version {
                return (count, pages);
            }
        }
    }

    /// Records a conversion and returns its slot; `None` if all are taken. For the one writer.
    pub(super) fn insert(&self, range: PageRange) -> Option<usize> {
        let free = self.slots.iter().position(|slot| slot.load(order::read()) == 0)?;
        self.change(free, range.to_word(), 1);
        Some(free)
    }

    /// Takes a conversion out of the record. For the one writer.
    pub(super) fn remove(&self, slot: usize) {
        self.change(slot, 0, u64::MAX);
    }

    fn change(&self, slot: usize, word: u64, count: u64) {
        let version = self.version();
        let counted = (version & COUNT_MASK).wrapping_add(count) & COUNT_MASK;
        let changing = (version & !COUNT_MASK).wrapping_add(STEP) | counted;
        self.version.store(changing, order::record());
        self.slots[slot].store(word, order::record());
        self.version.store(changing.wrapping_add(STEP), order::record());
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }
}
