//! Sub-states: what refines the state of a page, for the few pages that have one.
//!
//! Runs in a tree, by first page. A sub-state never says whether a page is mappable, and ends with the state that it
//! refines. Costs nothing but the empty tree while there are none.

use std::collections::BTreeMap;

use super::pages::PageRange;

/// What refines the state of a page: a tag whose meaning is its user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubState(pub u16);

/// The pages that have a sub-state.
#[derive(Debug, Default)]
pub(super) struct SubStates {
    /// End and tag, by first page. Runs neither overlap nor, with the same tag, touch.
    runs: BTreeMap<u64, (u64, SubState)>,
}

impl SubStates {
    /// How many runs there are.
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    /// The sub-state of a page, if it has one.
    pub(super) fn get(&self, page: u64) -> Option<SubState> {
        let (_, (end, tag)) = self.runs.range(..=page).next_back()?;
        (page < *end).then_some(*tag)
    }

    /// The runs in a range, cut to it.
    pub(super) fn runs(&self, range: PageRange) -> impl Iterator<Item = (PageRange, SubState)> {
        let before = self.runs.range(..range.first()).next_back();
        let within = self.runs.range(range.first()..range.end());
        before
            .into_iter()
            .chain(within)
            .filter_map(move |(first, (end, tag))| Some((PageRange::new(*first, *end)?.intersection(range)?, *tag)))
    }

    /// Gives all pages of a range this sub-state, or none.
    pub(super) fn set(&mut self, range: PageRange, tag: Option<SubState>) {
        let (mut first, mut end) = (range.first(), range.end());
        self.split_at(first);
        self.split_at(end);
        while let Some((inside, _)) = self.runs.range(first..end).next() {
            let inside = *inside;
            self.runs.remove(&inside);
        }
        let Some(tag) = tag else { return };
        if let Some((before, (stop, other))) = self.runs.range(..first).next_back()
            && (*stop, *other) == (first, tag)
        {
            first = *before;
        }
        if let Some((stop, other)) = self.runs.get(&end)
            && *other == tag
        {
            let stop = *stop;
            self.runs.remove(&end);
            end = stop;
        }
        self.runs.insert(first, (end, tag));
    }

    /// Cuts the run that this page is inside of, so that one begins here.
    fn split_at(&mut self, page: u64) {
        let Some((_, (end, tag))) = self.runs.range_mut(..page).next_back() else { return };
        if *end > page {
            let rest = (*end, *tag);
            *end = page;
            self.runs.insert(page, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 60;

    proptest! {
        #[test]
        fn agrees_with_a_list_of_tags(
            changes in prop::collection::vec((0..PAGES, 1..20u64, prop::option::of(0u16..3)), 0..60),
        ) {
            let mut table = SubStates::default();
            let mut list = vec![None; PAGES as usize];
            for (first, count, tag) in changes {
                let range = PageRange::new(first, (first + count).min(PAGES)).unwrap();
                let tag = tag.map(SubState);
                table.set(range, tag);
                list[first as usize..range.end() as usize].fill(tag);

                for page in 0..PAGES {
                    prop_assert_eq!(table.get(page), list[page as usize]);
                }
                let mut seen = vec![None; PAGES as usize];
                for (run, tag) in table.runs(range) {
                    seen[run.first() as usize..run.end() as usize].fill(Some(tag));
                }
                for page in 0..PAGES {
                    let expected = range.contains(page).then(|| list[page as usize]).flatten();
                    prop_assert_eq!(seen[page as usize], expected);
                }
                let changes_of_tag = list.iter().zip(list.iter().skip(1)).filter(|(a, b)| a != b && b.is_some());
                let runs = changes_of_tag.count() + usize::from(list[0].is_some());
                prop_assert_eq!(table.len(), runs, "runs are maximal");
            }
        }
    }
}
