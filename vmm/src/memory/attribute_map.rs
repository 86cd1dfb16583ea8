//! The state of each page of guest RAM: one bit a page, at its offset in the backings.
//!
//! Offsets in the backings have no holes, whatever the guest's addresses do, so the map is one plain array.

use hypervisor::{PAGE_SIZE, PageState};

/// Pages in one word.
const WORD: u64 = u64::BITS as u64;

/// The state of each page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeMap {
    /// A set bit is a private page.
    words: Vec<u64>,
    pages: u64,
    private: u64,
}

impl AttributeMap {
    /// A map of `size` bytes, all shared.
    pub fn new(size: u64) -> Self {
        let pages = size / PAGE_SIZE;
        Self { words: vec![0; pages.div_ceil(WORD) as usize], pages, private: 0 }
    }

    /// Bytes that are private.
    pub fn private_bytes(&self) -> u64 {
        self.private * PAGE_SIZE
    }

    /// Whether every page that these bytes touch has this state. False for bytes outside the map.
    pub fn is_all(&self, offset: u64, size: u64, state: PageState) -> bool {
        let Some(end) = offset.checked_add(size).filter(|end| *end <= self.pages * PAGE_SIZE) else { return false };
        self.runs(offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE), state.other()).next().is_none()
    }

    /// The runs of pages in `first..end` that have this state, as page numbers `(first, end)`.
    pub fn runs(&self, first: u64, end: u64, state: PageState) -> impl Iterator<Item = (u64, u64)> {
        let end = end.min(self.pages);
        let mut next = first;
        std::iter::from_fn(move || {
            let start = self.find(next, end, state)?;
            next = self.find(start, end, state.other()).unwrap_or(end);
            Some((start, next))
        })
    }

    /// The first page in `from..end` that has this state.
    fn find(&self, mut from: u64, end: u64, state: PageState) -> Option<u64> {
        while from < end {
            let word = self.words[(from / WORD) as usize];
            let wanted = if state == PageState::Private { word } else { !word };
            let rest = wanted >> (from % WORD);
            if rest != 0 {
                return Some(from + u64::from(rest.trailing_zeros())).filter(|page| *page < end);
            }
            from = (from / WORD + 1) * WORD;
        }
        None
    }

    /// Gives the pages `first..end` this state.
    pub fn set(&mut self, first: u64, end: u64, state: PageState) {
        let mut page = first;
        let end = end.min(self.pages);
        while page < end {
            let stop = end.min((page / WORD + 1) * WORD);
            let mask = (u64::MAX >> (WORD - (stop - page))) << (page % WORD);
            let word = &mut self.words[(page / WORD) as usize];
            let before = word.count_ones();
            match state {
                PageState::Private => *word |= mask,
                PageState::Shared => *word &= !mask,
            }
            self.private = self.private + u64::from(word.count_ones()) - u64::from(before);
            page = stop;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 200;

    proptest! {
        #[test]
        fn agrees_with_a_list_of_states(changes in prop::collection::vec((0..PAGES, 0..PAGES, any::<bool>()), 0..40)) {
            let mut map = AttributeMap::new(PAGES * PAGE_SIZE);
            let mut list = vec![PageState::Shared; PAGES as usize];
            for (a, b, private) in changes {
                let (first, end) = (a.min(b), a.max(b));
                let state = if private { PageState::Private } else { PageState::Shared };
                map.set(first, end, state);
                list[first as usize..end as usize].fill(state);

                let private = list.iter().filter(|state| **state == PageState::Private).count() as u64;
                prop_assert_eq!(map.private_bytes(), private * PAGE_SIZE);
                for state in [PageState::Private, PageState::Shared] {
                    let mut seen = vec![state.other(); PAGES as usize];
                    let mut last = None;
                    for (first, end) in map.runs(0, PAGES, state) {
                        prop_assert!(first < end && last.is_none_or(|last| last < first), "runs are maximal");
                        seen[first as usize..end as usize].fill(state);
                        last = Some(end);
                    }
                    prop_assert_eq!(&seen, &list);
                    let whole = list[first as usize..end as usize].iter().all(|other| *other == state);
                    prop_assert_eq!(map.is_all(first * PAGE_SIZE, (end - first) * PAGE_SIZE, state), whole);
                }
            }
        }
    }

    #[test]
    fn bytes_outside_have_no_state() {
        let map = AttributeMap::new(PAGES * PAGE_SIZE);
        for (offset, size) in [(PAGES * PAGE_SIZE, 1), (0, PAGES * PAGE_SIZE + 1), (u64::MAX, 2)] {
            assert!(!map.is_all(offset, size, PageState::Shared) && !map.is_all(offset, size, PageState::Private));
        }
    }
}
