//! Exact pins: guards that live long, in any number, and may end on another thread.
//!
//! A list of page ranges in a tree under a mutex, ordered by size class and first page. A range of class `c` has at most
//! 2^c pages, so one that overlaps a page begins at most that far before it, and a conversion looks up only what may
//! overlap its own pages, class by class. A conversion that waits for a pin sleeps, and is woken when one ends that was
//! in its way.
//!
//! How many there are is known without the mutex, so that a conversion which meets no pin at all takes no lock for them.
//! Whoever pins says so before it tests the refused bits, and a conversion looks after it has set them, as with guards.
//!
//! Cost: some 100 ns for each range, whatever its size, which is little beside what pins are for (asynchronous I/O).

use std::collections::BTreeMap;
use std::time::Duration;

use super::pages::PageRange;
use super::sync::{Arc, AtomicU64, Condvar, Mutex, MutexGuard, order, wait_for};

/// All pins on one map.
pub(super) struct Pins {
    list: Mutex<List>,
    /// Ranges in the list.
    count: AtomicU64,
    ended: Condvar,
}

impl Default for Pins {
    fn default() -> Self {
        Self { list: Mutex::default(), count: AtomicU64::new(0), ended: Condvar::new() }
    }
}

/// Class, first page and serial number of a range.
type Key = (u32, u64, u64);

#[derive(Default)]
struct List {
    /// End and owner.
    ranges: BTreeMap<Key, (u64, Arc<str>)>,
    next_serial: u64,
    /// What is waited for.
    waiting: Vec<PageRange>,
}

/// Ranges in the list, to be taken out again.
#[derive(Debug)]
pub(super) struct Pinned(Vec<Key>);

impl Pins {
    /// Enters these ranges. The refused bits of all of them are to be tested afterwards, not before.
    pub(super) fn insert(&self, ranges: &[PageRange], owner: &Arc<str>) -> Pinned {
        let mut list = self.list();
        let keys = ranges.iter().map(|range| {
            let key = (class(*range), range.first(), list.next_serial);
            list.next_serial += 1;
            list.ranges.insert(key, (range.end(), owner.clone()));
            key
        });
        let keys = keys.collect();
        self.count.swap(list.ranges.len() as u64, order::publish());
        Pinned(keys)
    }

    /// Takes ranges out, and wakes who waits for them.
    pub(super) fn remove(&self, pinned: &Pinned) {
        let mut list = self.list();
        let mut in_the_way = false;
        for key in &pinned.0 {
            if let Some((end, _)) = list.ranges.remove(key) {
                in_the_way |= list.waiting.iter().any(|waiting| waiting.first() < end && key.1 < waiting.end());
            }
        }
        self.count.store(list.ranges.len() as u64, order::clear());
        if in_the_way {
            self.ended.notify_all();
        }
    }

    /// Whether nothing at all is pinned.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(order::scan()) == 0
    }

    /// Who pins a page of this range, if anybody does.
    pub(super) fn owner_in(&self, range: PageRange) -> Option<Arc<str>> {
        self.list().overlapping(range)
    }

    /// Waits until a pin in this range has ended, unless there is none, but no longer than `timeout`.
    pub(super) fn wait_for_an_end(&self, range: PageRange, timeout: Duration) {
        let mut list = self.list();
        if list.overlapping(range).is_some() {
            list.waiting.push(range);
            list = wait_for(&self.ended, list, timeout);
            if let Some(index) = list.waiting.iter().position(|waiting| *waiting == range) {
                list.waiting.swap_remove(index);
            }
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // Nothing in here panics half-way.
        self.list.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl List {
    fn overlapping(&self, range: PageRange) -> Option<Arc<str>> {
        let mut class = 0;
        loop {
            let (&(present, ..), _) = self.ranges.range((class, 0, 0)..).next()?;
            let from = (range.first() + 1).saturating_sub(1 << present);
            let near = self.ranges.range((present, from, 0)..(present, range.end(), 0));
            if let Some((_, (_, owner))) = near.rev().find(|(_, (end, _))| *end > range.first()) {
                return Some(owner.clone());
            }
            class = present + 1;
        }
    }
}

/// The smallest power of two that is no less than the number of pages.
fn class(range: PageRange) -> u32 {
    range.count().next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = PageRange> {
        // Short ones near each other, and long ones.
        let count = prop_oneof![1..5u64, 1..1500u64];
        (0..3000u64, count).prop_map(|(first, count)| PageRange::new(first, first + count).unwrap())
    }

    proptest! {
        #[test]
        fn a_pin_is_found_by_each_of_its_pages_and_no_other(
            pins in prop::collection::vec(prop::collection::vec(range(), 1..3), 1..8),
            ended in any::<prop::sample::Index>(),
            asked in range(),
        ) {
            let table = Pins::default();
            let owner = Arc::from("disk");
            let mut pinned: Vec<_> = pins.iter().map(|ranges| (ranges, table.insert(ranges, &owner))).collect();
            let (_, gone) = pinned.swap_remove(ended.index(pinned.len()));
            table.remove(&gone);

            let overlaps = pinned.iter().any(|(ranges, _)| ranges.iter().any(|range| range.overlaps(asked)));
            prop_assert_eq!(table.owner_in(asked).is_some(), overlaps);
            for (_, rest) in pinned {
                table.remove(&rest);
            }
            prop_assert!(table.list().ranges.is_empty());
        }
    }

    #[test]
    fn the_largest_range_is_one_entry() {
        let table = Pins::default();
        let all = PageRange::new(0, super::super::pages::MAX_PAGES).unwrap();
        let pinned = table.insert(&[all], &Arc::from("disk"));
        assert_eq!(table.list().ranges.len(), 1);
        let last = PageRange::new(all.end() - 1, all.end()).unwrap();
        assert!(table.owner_in(last).is_some());
        table.remove(&pinned);
        assert!(table.owner_in(last).is_none());
    }
}
