//! The attribute map: the authoritative state of every page of guest RAM.
//!
//! One bit a page, in one prefaulted plane of atomic words, indexed by page number. A set bit means *refused*: devices
//! may not begin to touch the page, because it is private or because a conversion to private has begun. A page that is
//! refused and in no conversion in flight is private; the few conversions in flight are listed beside the plane (see
//! [`super::in_flight`]). So the bit that a device has to test is the only thing that a conversion has to set, the map
//! takes 32 MiB for 1 TiB of RAM, and its cost does not depend on how fragmented RAM is.
//!
//! Everybody may read, and never waits. There is one [`Writer`] for a plane and it cannot be cloned, so two threads can
//! change the map only by handing it to each other: whoever keeps it in a mutex has all changes under one lock.
//!
//! A page becomes private in two steps, so that between them the writer can be given back while guards are waited for:
//!
//! ```text
//! Writer::revoke  ->  Revoked  -> (quiesce) ->  Quiesced  ->  Writer::commit     now private
//!                        \____________________________\____>  Writer::restore    as it was
//! ```
//!
//! and shared in one, [`Writer::share`], once it is ready for devices.
//!
//! Guarantees:
//! * [`StatePlane::state`] is exact at one moment between call and return. Runs are so for each page; a list of runs
//!   is exact as a whole if it comes from [`Writer::runs`].
//! * Changes never allocate, nor fail half-way.
//! * Sub-states never change what is said about mappability, and end with the state that they refine.

use std::fmt;

use hypervisor::{ByteSize, PAGE_SIZE, PageState};

use super::guards::Registry;
use super::in_flight::{InFlight, MAX_SLOTS};
use super::pages::{MAX_PAGES, PageRange};
use super::runs::{Run, Runs};
use super::sub_states::{SubState, SubStates};
use super::sync::{Arc, AtomicU64, AtomicUsize, RwLock, order};
use super::writer::Writer;

/// Pages in one word.
pub(super) const WORD: u64 = u64::BITS as u64;

/// Words in one page of the host, which are faulted in together.
const WORDS_PER_HOST_PAGE: usize = (PAGE_SIZE / 8) as usize;

/// Why there is no map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// Not whole pages, or none.
    #[error("{} of RAM are not a whole number of {PAGE_SIZE}-byte pages", ByteSize(*.0))]
    Unaligned(u64),
    /// More than page numbers can count.
    #[error("{} of RAM are more than an attribute map can hold: at most {}", ByteSize(*.0), ByteSize(MAX_PAGES * PAGE_SIZE))]
    TooLarge(u64),
    /// No conversion could ever be made, or too many at a time.
    #[error("a map for {0} conversions at a time can't be had: at least 1, at most {MAX_SLOTS}")]
    InFlight(usize),
}

/// How much of RAM is in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlaneStatistics {
    /// All RAM, in bytes.
    pub total_bytes: u64,
    /// Private RAM, in bytes. The rest is shared.
    pub private_bytes: u64,
    /// Shared RAM in conversions to private that are in flight, in bytes.
    pub converting_bytes: u64,
    /// How many such conversions there are.
    pub conversions_in_flight: u64,
}

/// Tells one map from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapId(u64);

impl MapId {
    fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        Self(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

/// The state of every page.
pub struct StatePlane {
    pub(super) id: MapId,
    /// A set bit is a page that is refused to devices. Bits behind the last page are set.
    pub(super) refused: Arc<[AtomicU64]>,
    pages: u64,
    pub(super) in_flight: InFlight,
    pub(super) capacity: usize,
    /// How many pages are private.
    pub(super) private: AtomicU64,
    pub(super) sub_state_runs: AtomicUsize,
    pub(super) sub_states: RwLock<SubStates>,
    /// Who may be touching pages.
    pub(super) registry: Registry,
}

impl StatePlane {
    /// A map of `size` bytes of RAM, all shared, for at most `in_flight` conversions to private at a time, and its
    /// writer.
    ///
    /// # Errors
    /// A size that is not whole pages or more than [`MAX_PAGES`]; room for no conversion, or for too many.
    pub fn new(size: u64, in_flight: usize) -> Result<(Arc<Self>, Writer), PlaneError> {
        let pages = size / PAGE_SIZE;
        if pages == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(PlaneError::Unaligned(size));
        }
        if pages > MAX_PAGES {
            return Err(PlaneError::TooLarge(size));
        }
        if !(1..=MAX_SLOTS).contains(&in_flight) {
            return Err(PlaneError::InFlight(in_flight));
        }
        let refused: Arc<[AtomicU64]> = (0..pages.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect();
        // A store to each page of the host: allocators hand out zeroed memory that is not there yet.
        for word in refused.iter().step_by(WORDS_PER_HOST_PAGE) {
            word.store(0, order::record());
        }
        if let Some(last) = refused.last()
            && !pages.is_multiple_of(WORD)
        {
            last.store(u64::MAX << (pages % WORD), order::record());
        }
        let plane = Arc::new(Self {
            id: MapId::new(),
            refused,
            pages,
            in_flight: InFlight::new(in_flight),
            capacity: in_flight,
            private: AtomicU64::new(0),
            sub_state_runs: AtomicUsize::new(0),
            sub_states: RwLock::new(SubStates::default()),
            registry: Registry::default(),
        });
        Ok((plane.clone(), Writer::new(plane)))
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// All pages.
    pub fn all(&self) -> PageRange {
        PageRange::new(0, self.pages).expect("a plane has at least one page and at most the most that there can be")
    }

    /// The state of a page; `None` for a page that the map doesn't have.
    #[inline]
    pub fn state(&self, page: u64) -> Option<PageState> {
        if page >= self.pages {
            return None;
        }
        let word = self.refused.get((page / WORD) as usize)?;
        loop {
            let version = self.in_flight.version();
            if word.load(order::read()) >> (page % WORD) & 1 == 0 {
                return Some(PageState::Shared);
            }
            let converting = self.in_flight.ranges(version).any(|range| range.contains(page));
            // Unchanged: bit and record belong together. Otherwise some conversion has got on meanwhile.
            if self.in_flight.version() == version {
                return Some(if converting { PageState::Shared } else { PageState::Private });
            }
        }
    }

    /// Whether a page is private. False for pages that the map doesn't have.
    #[inline]
    pub fn is_private(&self, page: u64) -> bool {
        self.state(page) == Some(PageState::Private)
    }

    /// Whether all pages of a range have this state. False for a range that is not wholly in the map.
    pub fn is_all(&self, range: PageRange, state: PageState) -> bool {
        if range.end() > self.pages {
            return false;
        }
        // Most ranges are of one kind, and one bit tells.
        match (state, self.find(range.first(), range.end(), state == PageState::Shared)) {
            (PageState::Shared, None) => true,
            (PageState::Private, Some(_)) => false,
            (PageState::Shared, Some(page)) if self.is_private(page) => false,
            _ => self.runs(range).all(|run| run.state == state),
        }
    }

    /// The runs of pages in a range, in order, without gaps and as long as they can be. Pages that the map doesn't have
    /// are left out.
    ///
    /// Conversions may go on while the runs are read. Each page is then reported as it was at some moment of that time.
    pub fn runs(&self, range: PageRange) -> impl Iterator<Item = Run> {
        Runs::new(self, range)
    }

    /// The word of the plane that holds a page.
    pub(super) fn word(&self, page: u64) -> u64 {
        self.refused[(page / WORD) as usize].load(order::read())
    }

    /// The first page in `from..end` whose bit is this.
    pub(super) fn find(&self, mut from: u64, end: u64, refused: bool) -> Option<u64> {
        while from < end {
            let word = self.word(from);
            let rest = (if refused { word } else { !word }) >> (from % WORD);
            if rest != 0 {
                return Some(from + u64::from(rest.trailing_zeros())).filter(|page| *page < end);
            }
            from = (from / WORD + 1) * WORD;
        }
        None
    }

    /// How much of RAM is in which state. Costs the same for any map.
    pub fn statistics(&self) -> PlaneStatistics {
        let (count, converting) = self.in_flight.totals();
        PlaneStatistics {
            total_bytes: self.pages * PAGE_SIZE,
            private_bytes: self.private.load(order::read()) * PAGE_SIZE,
            converting_bytes: converting * PAGE_SIZE,
            conversions_in_flight: count,
        }
    }

    /// Host memory that the map holds, in bytes.
    pub fn bytes_held(&self) -> usize {
        let tree_entry = 2 * size_of::<(u64, u64, SubState)>();
        size_of::<Self>()
            + size_of_val(&*self.refused)
            + self.in_flight.bytes()
            + self.sub_state_runs.load(order::read()) * tree_entry
    }

    /// The sub-state of a page, if it has one.
    pub fn sub_state(&self, page: u64) -> Option<SubState> {
        if self.sub_state_runs.load(order::read()) == 0 {
            return None;
        }
        self.sub_states.read().unwrap_or_else(|e| e.into_inner()).get(page)
    }

    /// The runs of pages in a range that have a sub-state.
    pub fn sub_states(&self, range: PageRange) -> Vec<(PageRange, SubState)> {
        self.sub_states.read().unwrap_or_else(|e| e.into_inner()).runs(range).collect()
    }

    /// The refused bits, for whoever tests them often.
    pub(super) fn refused_bits(&self) -> RefusedBits {
        RefusedBits(self.refused.clone())
    }

    /// The first page of a range that devices are refused, or that the map doesn't have.
    pub(super) fn first_refused(&self, range: PageRange) -> Option<u64> {
        let mut page = range.first();
        while page < range.end() {
            let stop = range.end().min((page / WORD + 1) * WORD);
            let Some(word) = self.refused.get((page / WORD) as usize) else { return Some(page) };
            let refused = word.load(order::test()) & mask(page % WORD, stop - page);
            if refused != 0 {
                return Some(page / WORD * WORD + u64::from(refused.trailing_zeros()));
            }
            page = stop;
        }
        None
    }
}

impl fmt::Debug for StatePlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatePlane").field("statistics", &self.statistics()).finish_non_exhaustive()
    }
}

/// The refused bits of a map.
pub(super) struct RefusedBits(Arc<[AtomicU64]>);

impl RefusedBits {
    /// The word and the bits in it that say whether devices are refused any page of a range; `None` if that takes more
    /// than one word, or pages that the map doesn't have.
    #[inline(always)]
    pub(super) fn word(&self, range: PageRange) -> Option<(&AtomicU64, u64)> {
        let index = range.first() / WORD;
        if (range.end() - 1) / WORD != index {
            return None;
        }
        let word = self.0.get(index as usize)?;
        Some((word, mask(range.first() % WORD, range.count())))
    }
}

/// `count` bits from bit `first` of a word on; both lie inside of it.
#[inline(always)]
pub(super) const fn mask(first: u64, count: u64) -> u64 {
    (u64::MAX >> (WORD - count)) << first
}

#[cfg(test)]
#[path = "state_plane/tests.rs"]
mod tests;
