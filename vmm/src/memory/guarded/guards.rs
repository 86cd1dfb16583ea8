//! All guards and pins on one map: where devices say what they touch, and where conversions look.
//!
//! Each [`GuardHandle`] owns a cache line of slots, so no two devices ever write to the same line, and a writer reads them
//! only when it converts. The lines and the pins belong to the map, so however many [`Guards`] are made of one map, they
//! are the same ones.
//!
//! Cost: a conversion reads one line for each handle, and looks once into the list of pins if there is any.

use std::fmt;

use super::guard::GuardHandle;
use super::pages::PageRange;
use super::pins::{Pinned, Pins};
use super::state_plane::StatePlane;
use super::sync::{Arc, AtomicU64, RwLock, SLOTS, order};

/// The slots of one handle. Two lines' worth of alignment, since processors fetch lines in pairs.
#[repr(align(128))]
pub(super) struct Line {
    /// The pages of a guard each, zero where there is none.
    pub(super) slots: [AtomicU64; SLOTS],
}

impl Line {
    /// The pages that a slot names.
    pub(super) fn pages(&self, slot: usize) -> Option<PageRange> {
        PageRange::from_word(self.slots[slot].load(order::scan()))
    }

    /// What all slots name, read at once: the line is likely to be taken back by its owner between two looks.
    fn all_pages(&self) -> impl Iterator<Item = Option<PageRange>> {
        let words: [u64; SLOTS] = std::array::from_fn(|slot| self.slots[slot].load(order::scan()));
        words.into_iter().map(PageRange::from_word)
    }
}

struct Registered {
    line: Arc<Line>,
    owner: Arc<str>,
}

/// Who may be touching pages of a map. Away from the words that devices read.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Registry {
    lines: RwLock<Vec<Registered>>,
    pub(super) pins: Pins,
}

impl Registry {
    /// Enters a new line.
    pub(super) fn enter(&self, owner: &Arc<str>) -> Arc<Line> {
        let line = Arc::new(Line { slots: std::array::from_fn(|_| AtomicU64::new(0)) });
        let registered = Registered { line: line.clone(), owner: owner.clone() };
        self.lines.write().unwrap_or_else(|e| e.into_inner()).push(registered);
        line
    }

    /// Takes a line out, whose guards have all ended.
    pub(super) fn leave(&self, line: &Arc<Line>) {
        let mut lines = self.lines.write().unwrap_or_else(|e| e.into_inner());
        lines.retain(|registered| !Arc::ptr_eq(&registered.line, line));
    }

    /// The slots that name a page of this range now, with their owners.
    pub(super) fn overlapping(&self, range: PageRange) -> Vec<(Arc<Line>, usize, Arc<str>)> {
        let mut found = Vec::new();
        for Registered { line, owner } in self.lines.read().unwrap_or_else(|e| e.into_inner()).iter() {
            for (slot, pages) in line.all_pages().enumerate() {
                if pages.is_some_and(|pages| pages.overlaps(range)) {
                    found.push((line.clone(), slot, owner.clone()));
                }
            }
        }
        found
    }

    /// Whether no guard names a page of this range now, and no pin has one.
    pub(super) fn is_quiet(&self, range: PageRange) -> bool {
        let lines = self.lines.read().unwrap_or_else(|e| e.into_inner());
        let guarded = |pages: Option<PageRange>| pages.is_some_and(|pages| pages.overlaps(range));
        let pinned = !self.pins.is_empty() && self.pins.owner_in(range).is_some();
        !pinned && !lines.iter().any(|registered| registered.line.all_pages().any(guarded))
    }
}

/// The guards of all devices on one map.
pub struct Guards {
    plane: Arc<StatePlane>,
}

impl Guards {
    /// The guards on this map.
    pub fn new(plane: Arc<StatePlane>) -> Arc<Self> {
        Arc::new(Self { plane })
    }

    /// The map.
    pub fn plane(&self) -> &Arc<StatePlane> {
        &self.plane
    }

    /// A handle for a thread of a device. `owner` is who is told to be in the way, should a conversion have to wait.
    pub fn handle(self: &Arc<Self>, owner: &str) -> GuardHandle {
        GuardHandle::new(self, owner.into())
    }

    /// Pins pages until the pin is dropped, on whatever thread.
    ///
    /// # Errors
    /// The first page that devices are refused; nothing is pinned then.
    pub fn pin(self: &Arc<Self>, ranges: &[PageRange], owner: &Arc<str>) -> Result<Pin, Refused> {
        // In the list before the bits are tested; out of it again if a page is refused.
        let pin = Pin { guards: self.clone(), pinned: self.plane.registry.pins.insert(ranges, owner) };
        match ranges.iter().find_map(|range| self.plane.first_refused(*range)) {
            None => Ok(pin),
            Some(page) => Err(Refused { page }),
        }
    }
}

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guards").field("plane", &self.plane).finish()
    }
}

/// A page that devices are refused, or that the map doesn't have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The first such page of what was asked for.
    pub page: u64,
}

/// Pages that stay shared until this is dropped, on whatever thread.
pub struct Pin {
    guards: Arc<Guards>,
    pinned: Pinned,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.guards.plane.registry.pins.remove(&self.pinned);
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("pinned", &self.pinned).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::quiesce::WaitForGuards;
    use super::*;
    use hypervisor::PAGE_SIZE;

    #[test]
    fn a_refused_guard_leaves_nothing_behind() {
        let (plane, mut writer) = StatePlane::new(2 * PAGE_SIZE, 1).unwrap();
        let guards = Guards::new(plane);
        let (page, both) = (PageRange::new(1, 2).unwrap(), PageRange::new(0, 2).unwrap());
        let handle = guards.handle("device");
        for way in 0..4 {
            let revoked = writer.revoke(page).unwrap();
            match way {
                0 => assert!(handle.guard_quickly(both).is_none()),
                1 => assert_eq!(handle.guard(both).unwrap_err(), Refused { page: 1 }),
                2 => assert_eq!(handle.guard_long(both).unwrap_err(), Refused { page: 1 }),
                _ => assert_eq!(guards.pin(&[both], handle.owner()).unwrap_err(), Refused { page: 1 }),
            }
            let quiesced = revoked.quiesce(&WaitForGuards, &guards, &mut |_| ControlFlow::Break(()));
            writer.restore(quiesced.unwrap());
        }
    }

    #[test]
    fn a_handle_that_is_gone_is_looked_at_no_more() {
        let (plane, _writer) = StatePlane::new(PAGE_SIZE, 1).unwrap();
        let guards = Guards::new(plane.clone());
        let handles: Vec<_> = (0..3).map(|_| guards.handle("device")).collect();
        assert_eq!(plane.registry.lines.read().unwrap().len(), 3);
        drop(handles);
        assert_eq!(plane.registry.lines.read().unwrap().len(), 0);
    }
}
