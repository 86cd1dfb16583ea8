//! Changing the map: the writer, and conversions to private step by step.

use hypervisor::PageState;

use super::pages::PageRange;
use super::runs::Run;
use super::state_plane::{MapId, StatePlane, WORD, mask};
use super::sub_states::SubState;
use super::sync::{Arc, AtomicU64, order, revocation_fence};

/// Why the writer did not begin a change, of which nothing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Pages that the map doesn't have.
    #[error("{range} are outside of the map, which has {pages:#x} pages")]
    Outside {
        /// The pages.
        range: PageRange,
        /// Pages of the map.
        pages: u64,
    },
    /// A page is in the wanted state already: the caller leaves such pages out.
    #[error("page {page:#x} is {state} already")]
    NoChange {
        /// The first such page.
        page: u64,
        /// Its state.
        state: PageState,
    },
    /// Some of the pages are in a conversion in flight: the caller waits for it to end.
    #[error("{other} are being converted already")]
    InFlight {
        /// The conversion in flight.
        other: PageRange,
    },
    /// As many conversions are in flight as the map was made for: the caller waits for one to end.
    #[error("all {capacity} conversions that may be in flight are")]
    Full {
        /// How many.
        capacity: usize,
    },
}

/// Pages that are refused to devices, and may still be in use under guards that began before.
///
/// Whoever drops it leaves its pages so for good: nothing is touched that should not be, and nothing can be converted.
#[must_use = "the pages stay refused until this is committed or restored"]
#[derive(Debug)]
pub struct Revoked {
    map: MapId,
    range: PageRange,
    /// Where its pages are recorded.
    slot: usize,
}

impl Revoked {
    /// The pages.
    #[inline]
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// The map.
    #[inline]
    pub(super) fn map(&self) -> MapId {
        self.map
    }

    /// Says that all guards on the pages have ended. Only quiescing may.
    pub(super) fn into_quiesced(self) -> Quiesced {
        Quiesced(self)
    }
}

/// Pages that are refused to devices and that no device is touching.
#[must_use = "the pages stay refused until this is committed or restored"]
#[derive(Debug)]
pub struct Quiesced(Revoked);

impl Quiesced {
    /// The pages.
    pub fn range(&self) -> PageRange {
        self.0.range()
    }
}

impl From<Quiesced> for Revoked {
    fn from(quiesced: Quiesced) -> Self {
        quiesced.0
    }
}

/// The right to change a map. There is one for each, and it can't be cloned.
#[derive(Debug)]
pub struct Writer {
    plane: Arc<StatePlane>,
}

impl Writer {
    pub(super) fn new(plane: Arc<StatePlane>) -> Self {
        Self { plane }
    }

    /// The map.
    pub fn plane(&self) -> &Arc<StatePlane> {
        &self.plane
    }

    /// The runs of pages in a range, exact as a whole: nothing changes while the writer is borrowed.
    pub fn runs(&self, range: PageRange) -> impl Iterator<Item = Run> {
        self.plane.runs(range)
    }

    /// The first run of pages in this state among these, converting or not.
    #[inline(always)]
    pub fn first_run(&self, range: PageRange, state: PageState) -> Option<PageRange> {
        let plane = &*self.plane;
        if !plane.in_flight.is_empty() {
            return self.runs(range).find(|run| run.state == state).map(|run| run.pages);
        }
        // Nothing is converting, so the bits tell all.
        let end = range.end().min(plane.pages());
        let private = state == PageState::Private;
        let first = plane.find(range.first(), end, private)?;
        PageRange::new(first, plane.find(first, end, !private).unwrap_or(end))
    }

    /// Begins a conversion to private: from here on devices are refused these pages, all of which are shared.
    ///
    /// # Errors
    /// Pages that are private or in another conversion, or too many conversions in flight. Nothing has changed.
    #[inline(always)]
    pub fn revoke(&mut self, range: PageRange) -> Result<Revoked, ChangeError> {
        self.check(range, PageState::Private)?;
        // The record comes first: whoever sees the bits sees why they are set.
        let capacity = self.plane.capacity;
        let slot = self.plane.in_flight.insert(range).ok_or(ChangeError::Full { capacity })?;
        self.set_refused(range, true);
        revocation_fence();
        Ok(Revoked { map: self.plane.id, range, slot })
    }

    /// Ends a conversion to private: from here on the pages are private.
    ///
    /// # Panics
    /// If it is a conversion of another map.
    #[inline(always)]
    pub fn commit(&mut self, quiesced: Quiesced) {
        let range = self.own(&quiesced.0);
        self.plane.in_flight.remove(quiesced.0.slot);
        add(&self.plane.private, range.count());
        self.clear_sub_states(range);
    }

    /// Gives a conversion to private up: the pages are shared, as they were, and devices are let in again.
    ///
    /// # Panics
    /// If it is a conversion of another map.
    pub fn restore(&mut self, revoked: impl Into<Revoked>) {
        let revoked = revoked.into();
        let range = self.own(&revoked);
        // The bits come first: a page whose bit is set and that is in no conversion is private.
        self.set_refused(range, false);
        self.plane.in_flight.remove(revoked.slot);
    }

    /// Makes private pages, which are ready for devices, shared.
    ///
    /// # Errors
    /// Pages that are shared, or in a conversion to private. Nothing has changed.
    pub fn share(&mut self, range: PageRange) -> Result<(), ChangeError> {
        self.check(range, PageState::Shared)?;
        self.clear_sub_states(range);
        self.set_refused(range, false);
        add(&self.plane.private, range.count().wrapping_neg());
        Ok(())
    }

    /// Gives all pages of a range this sub-state, or none.
    ///
    /// # Errors
    /// Pages that the map doesn't have.
    pub fn set_sub_state(&mut self, range: PageRange, sub_state: Option<SubState>) -> Result<(), ChangeError> {
        self.check_inside(range)?;
        let mut table = self.plane.sub_states.write().unwrap_or_else(|e| e.into_inner());
        table.set(range, sub_state);
        self.plane.sub_state_runs.store(table.len(), order::record());
        Ok(())
    }

    #[inline(always)]
    fn clear_sub_states(&mut self, range: PageRange) {
        if self.plane.sub_state_runs.load(order::read()) == 0 {
            return;
        }
        let mut table = self.plane.sub_states.write().unwrap_or_else(|e| e.into_inner());
        table.set(range, None);
        self.plane.sub_state_runs.store(table.len(), order::record());
    }

    /// The pages of a conversion, which has to be of this map.
    fn own(&self, revoked: &Revoked) -> PageRange {
        assert!(revoked.map == self.plane.id, "the conversion is of another map");
        revoked.range
    }

    fn check_inside(&self, range: PageRange) -> Result<(), ChangeError> {
        let pages = self.plane.pages();
        if range.end() > pages { Err(ChangeError::Outside { range, pages }) } else { Ok(()) }
    }

    /// Checks that no page of a range has this state, and that none is in a conversion in flight.
    #[inline(always)]
    fn check(&self, range: PageRange, to: PageState) -> Result<(), ChangeError> {
        self.check_inside(range)?;
        let version = self.plane.in_flight.version();
        if let Some(other) = self.plane.in_flight.ranges(version).find(|other| other.overlaps(range)) {
            return Err(ChangeError::InFlight { other });
        }
        let same = self.plane.find(range.first(), range.end(), to == PageState::Private);
        same.map_or(Ok(()), |page| Err(ChangeError::NoChange { page, state: to }))
    }

    /// Plain loads and stores: there is no other writer.
    #[inline(always)]
    fn set_refused(&mut self, range: PageRange, refused: bool) {
        let ordering = if refused { order::record() } else { order::allow() };
        let mut page = range.first();
        while page < range.end() {
            let stop = range.end().min((page / WORD + 1) * WORD);
            let mask = mask(page % WORD, stop - page);
            let word = &self.plane.refused[(page / WORD) as usize];
            let before = word.load(order::read());
            word.store(if refused { before | mask } else { before & !mask }, ordering);
            page = stop;
        }
    }
}

/// Plain loads and stores: only the writer changes the counter.
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(order::read()).wrapping_add(value), order::record());
}
