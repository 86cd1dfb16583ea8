//! Which pages are private: runs of them, sorted. Costs nothing where pages are shared, as they are at first.

use std::collections::BTreeMap;

use crate::{GpaRange, PageState};

/// First address of each run of private pages, and the first behind it. Runs neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct Attributes(BTreeMap<u64, u64>);

impl Attributes {
    pub(super) fn get(&self, gpa: u64) -> PageState {
        match self.0.range(..=gpa).next_back() {
            Some((_, end)) if gpa < *end => PageState::Private,
            _ => PageState::Shared,
        }
    }

    pub(super) fn set(&mut self, range: GpaRange, state: PageState) {
        let (start, end) = (range.start(), range.end());
        self.split(start);
        self.split(end);
        let inside: Vec<u64> = self.0.range(start..end).map(|(first, _)| *first).collect();
        for first in inside {
            self.0.remove(&first);
        }
        if state == PageState::Private {
            let end = self.0.remove(&end).unwrap_or(end);
            match self.0.range_mut(..start).next_back() {
                Some((_, behind)) if *behind == start => *behind = end,
                _ => drop(self.0.insert(start, end)),
            }
        }
    }

    /// Makes two of the run that has this address in its middle.
    fn split(&mut self, at: u64) {
        if let Some((_, behind)) = self.0.range_mut(..at).next_back()
            && *behind > at
        {
            let end = std::mem::replace(behind, at);
            self.0.insert(at, end);
        }
    }

    /// The runs of private pages, lowest first.
    pub(super) fn private(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(start, end)| (*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;
    use proptest::prelude::*;

    const PAGES: u64 = 24;

    fn change() -> impl Strategy<Value = (u64, u64, PageState)> {
        let state = prop_oneof![Just(PageState::Shared), Just(PageState::Private)];
        (0..PAGES, 1..=8u64, state)
    }

    proptest! {
        #[test]
        fn it_is_what_a_list_of_pages_would_be(changes in prop::collection::vec(change(), 0..40)) {
            let mut attributes = Attributes::default();
            let mut pages = [PageState::Shared; (PAGES + 8) as usize];
            for (first, count, state) in changes {
                attributes.set(GpaRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap(), state);
                pages[first as usize..(first + count) as usize].fill(state);
                for (page, expected) in pages.iter().enumerate() {
                    let gpa = page as u64 * PAGE_SIZE;
                    prop_assert_eq!(attributes.get(gpa), *expected);
                    prop_assert_eq!(attributes.get(gpa + PAGE_SIZE - 1), *expected);
                }
                let runs: Vec<_> = attributes.private().collect();
                prop_assert!(runs.iter().all(|(start, end)| start < end));
                prop_assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:x?}", runs);
            }
        }
    }

    #[test]
    fn all_addresses_can_be_private() {
        let all = GpaRange::new(0, 1 << 63).unwrap();
        let mut attributes = Attributes::default();
        attributes.set(all, PageState::Private);
        assert_eq!(attributes.get((1 << 63) - 1), PageState::Private);
        assert_eq!(attributes.get(1 << 63), PageState::Shared);
        attributes.set(all, PageState::Shared);
        assert_eq!(attributes.private().count(), 0);
    }
}
