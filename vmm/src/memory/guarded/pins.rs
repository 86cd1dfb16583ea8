//! Exact pins: guards that live long, in any number, and may end on another thread.
//!
//! A list of page ranges in a tree under a mutex. Costs about 100 ns a range, which is little beside what pins are for
//! (asynchronous I/O), and a conversion looks up only what may overlap its own pages. A conversion that waits for a pin
//! sleeps and is woken by the pin's end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pages::PageRange;
use super::sync::{Arc, Condvar, Mutex, MutexGuard, wait_for};

/// Longer ranges are held in pieces of this many pages, so that a range that overlaps a page begins at most this far
/// before it.
const PIECE: u64 = 512;

/// All pins of one guard table.
#[derive(Default)]
pub(super) struct Pins {
    list: Mutex<List>,
    ended: Condvar,
}

#[derive(Default)]
struct List {
    /// End and owner, by first page and serial number.
    pieces: BTreeMap<(u64, u64), (u64, Arc<str>)>,
    next_serial: u64,
    waiting: usize,
}

/// Ranges in the list, to be taken out again.
#[derive(Debug)]
pub(super) struct Pinned {
    keys: Vec<(u64, u64)>,
}

impl Pins {
    /// Enters these ranges. The refused bits of all of them are to be tested afterwards, not before.
    pub(super) fn insert(&self, ranges: impl IntoIterator<Item = PageRange>, owner: &Arc<str>) -> Pinned {
        let mut keys = Vec::new();
        let mut list = self.list();
        for range in ranges {
            let mut first = range.first();
            while first < range.end() {
                let end = range.end().min(first + PIECE);
                let key = (first, list.next_serial);
                list.next_serial += 1;
                list.pieces.insert(key, (end, owner.clone()));
                keys.push(key);
                first = end;
            }
        }
        Pinned { keys }
    }

    /// Takes ranges out, and wakes whoever waits for that.
    pub(super) fn remove(&self, pinned: &Pinned) {
        let mut list = self.list();
        for key in &pinned.keys {
            list.pieces.remove(key);
        }
        if list.waiting > 0 {
            self.ended.notify_all();
        }
    }

    /// Who pins a page of this range, if anybody does.
    pub(super) fn owner_in(&self, range: PageRange) -> Option<Arc<str>> {
        self.list().overlapping(range)
    }

    /// Waits until a pin has ended, unless none is in this range, but no longer than `timeout`.
    pub(super) fn wait_for_an_end(&self, range: PageRange, timeout: Duration) {
        let mut list = self.list();
        if list.overlapping(range).is_some() {
            list.waiting += 1;
            list = wait_for(&self.ended, list, timeout);
            list.waiting -= 1;
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // Nothing in here panics half-way.
        self.list.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl List {
    fn overlapping(&self, range: PageRange) -> Option<Arc<str>> {
        let from = range.first().saturating_sub(PIECE);
        let mut near = self.pieces.range((from, 0)..(range.end(), 0));
        near.find(|(_, (end, _))| *end > range.first()).map(|(_, (_, owner))| owner.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pin_is_found_by_each_of_its_pages_and_no_other(
            pins in prop::collection::vec((0..3000u64, 1..1500u64), 1..8),
            ended in any::<prop::sample::Index>(),
            first in 0..5000u64,
            count in 1..1500u64,
        ) {
            let table = Pins::default();
            let owner = Arc::from("disk");
            let ranges: Vec<_> = pins.iter().map(|(first, count)| PageRange::new(*first, first + count).unwrap()).collect();
            let mut pinned: Vec<_> = ranges.iter().map(|range| (*range, table.insert([*range], &owner))).collect();
            let (_, gone) = pinned.swap_remove(ended.index(pinned.len()));
            table.remove(&gone);

            let asked = PageRange::new(first, first + count).unwrap();
            let overlaps = pinned.iter().any(|(range, _)| range.overlaps(asked));
            prop_assert_eq!(table.owner_in(asked).is_some(), overlaps);
            for (_, rest) in pinned {
                table.remove(&rest);
            }
            prop_assert!(table.list().pieces.is_empty());
        }
    }
}
