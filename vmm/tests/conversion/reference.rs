//! What guest memory must be like: a plain table of the pages that a test uses.

use std::collections::BTreeMap;

use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use crate::world::World;

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    pub state: PageState,
    /// The first word of the side that the guest uses.
    pub word: u64,
}

/// The pages, by address. All others are shared and empty, for good.
#[derive(Debug, Clone)]
pub struct Reference(pub BTreeMap<u64, Page>);

impl Reference {
    pub fn new(pages: impl IntoIterator<Item = u64>) -> Self {
        Self(pages.into_iter().map(|gpa| (gpa, Page { state: PageState::Shared, word: 0 })).collect())
    }

    /// A conversion that succeeded.
    pub fn convert(&mut self, range: GpaRange, to: PageState) {
        for (_, page) in self.0.range_mut(range.start()..range.end()).filter(|(_, page)| page.state != to) {
            *page = Page { state: to, word: 0 };
        }
    }

    /// A conversion that failed somewhere: its pages changed up to some page, and none behind it.
    pub fn convert_in_part(&mut self, world: &World, range: GpaRange, to: PageState) {
        let mut stopped = false;
        for (gpa, page) in self.0.range_mut(range.start()..range.end()).filter(|(_, page)| page.state != to) {
            let changed = world.state(*gpa) == to;
            assert!(!(changed && stopped), "{gpa:#x} is {to}, although the conversion stopped before it");
            stopped |= !changed;
            if changed {
                *page = Page { state: to, word: 0 };
            }
        }
    }

    /// Everything agrees: the table, the map, KVM's attributes and the backings.
    pub fn check(&self, world: &World) {
        // Read first: what is owed only shrinks while nobody converts.
        let owed = world.ram.statistics().discard_backlog_bytes;
        let sides = [PageState::Shared, PageState::Private].map(|side| (side, world.allocated(side)));
        let has_memory = |side: PageState, offset: u64| {
            let runs = &sides.iter().find(|(other, _)| *other == side).unwrap().1;
            runs.iter().any(|run| run.contains(&offset))
        };
        let (mut private, mut left) = (0, 0);
        for (gpa, page) in &self.0 {
            assert_eq!(world.state(*gpa), page.state, "the map's state of {gpa:#x}");
            if let Some(attribute) = world.attribute(*gpa) {
                assert_eq!(attribute, page.state, "KVM's attribute of {gpa:#x}");
            }
            let offset = world.offset(*gpa);
            // What has no memory reads as zero, and reading it would give it some.
            let word = if has_memory(page.state, offset) { world.word(page.state, offset) } else { 0 };
            assert_eq!(word, page.word, "the {} contents of {gpa:#x}", page.state);
            private += u64::from(page.state == PageState::Private) * PAGE_SIZE;
            left += u64::from(has_memory(page.state.other(), offset)) * PAGE_SIZE;
        }
        let statistics = world.ram.statistics();
        assert_eq!(statistics.private_bytes, private);
        assert_eq!(statistics.private_bytes + statistics.shared_bytes, statistics.ram_bytes);
        assert!(left <= owed, "{left:#x} bytes of sides that pages left have memory, and {owed:#x} are owed");
        let mapped: u64 =
            world.runs().iter().filter(|run| run.state == PageState::Private).map(|run| run.pages.bytes()).sum();
        assert_eq!(mapped, private, "the map's runs");
    }
}
