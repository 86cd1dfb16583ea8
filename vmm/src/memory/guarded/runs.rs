//! Reading the map as runs, while it changes.

use hypervisor::PageState;

use super::pages::{MAX_PAGES, PageRange};
use super::state_plane::{StatePlane, WORD, mask};

/// Neighbouring pages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The pages.
    pub pages: PageRange,
    /// Their state.
    pub state: PageState,
    /// Whether a conversion to private has begun: devices are refused although the pages are shared.
    pub converting: bool,
}

/// Reads the runs of a range, one word of the plane after another.
pub(super) struct Runs<'a> {
    plane: &'a StatePlane,
    next: u64,
    end: u64,
    /// The conversions in flight, and the version that they are of.
    in_flight: Vec<PageRange>,
    version: Option<u64>,
}

/// The states of the pages of one word, as they were at one moment.
#[derive(Clone, Copy)]
struct Word {
    refused: u64,
    /// In a conversion in flight.
    converting: u64,
}

impl Word {
    /// State of a page, and whether it is converting.
    fn kind(self, page: u64) -> (PageState, bool) {
        match (self.refused >> (page % WORD) & 1, self.converting >> (page % WORD) & 1) {
            (0, _) => (PageState::Shared, false),
            (_, 0) => (PageState::Private, false),
            _ => (PageState::Shared, true),
        }
    }

    /// The pages that are of another kind.
    fn others(self, kind: (PageState, bool)) -> u64 {
        match kind {
            (PageState::Shared, false) => self.refused,
            (PageState::Private, _) => !self.refused | self.converting,
            (PageState::Shared, true) => !(self.refused & self.converting),
        }
    }
}

impl<'a> Runs<'a> {
    /// The runs of the pages of a range that the map has.
    pub(super) fn new(plane: &'a StatePlane, range: PageRange) -> Self {
        let (next, end) = (range.first(), range.end().min(plane.pages()));
        Self { plane, next, end, in_flight: Vec::new(), version: None }
    }

    /// The word that holds a page.
    fn word(&mut self, page: u64) -> Word {
        loop {
            let version = self.plane.in_flight.version();
            if self.version != Some(version) {
                self.in_flight = self.plane.in_flight.ranges(version).collect();
                self.version = Some(version);
            }
            let refused = self.plane.word(page);
            let mut converting = 0;
            let start = page / WORD * WORD;
            if let Some(word) = PageRange::new(start, (start + WORD).min(MAX_PAGES)) {
                for range in self.in_flight.iter().filter_map(|range| range.intersection(word)) {
                    converting |= mask(range.first() - start, range.count());
                }
            }
            // Unchanged: bits and record belong together.
            if self.plane.in_flight.version() == version {
                return Word { refused, converting };
            }
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let first = self.next;
        if first >= self.end {
            return None;
        }
        let mut word = self.word(first);
        let kind = word.kind(first);
        let mut page = first;
        self.next = loop {
            let rest = word.others(kind) >> (page % WORD);
            if rest != 0 {
                break self.end.min(page + u64::from(rest.trailing_zeros()));
            }
            page = (page / WORD + 1) * WORD;
            if page >= self.end {
                break self.end;
            }
            word = self.word(page);
        };
        Some(Run { pages: PageRange::new(first, self.next)?, state: kind.0, converting: kind.1 })
    }
}
