//! Guards: proof that pages stay shared until it is dropped.
//!
//! Each device handle owns a cache line of slots. A guard publishes its page range in a slot, then tests the refused
//! bits of its pages: the order in which the two are done is what the whole protocol rests on (see [`super`]). Ending a
//! guard clears the slot. Slots belong to one handle, so no two devices ever write to the same cache line, and a writer
//! reads them only when it converts.
//!
//! Cost: one atomic exchange and one load to begin a guard, one store to end it. As many guards as there are slots can
//! be held at a time by one handle; further ones still work, as pins, at the price of a mutex.

use std::cell::{Cell, OnceCell};
use std::fmt;

use super::pages::PageRange;
use super::pins::{Pinned, Pins};
use super::state_plane::{RefusedBits, StatePlane};
use super::sync::{Arc, AtomicU64, RwLock, SLOTS, order};

/// The slots of one handle. Two lines' worth of alignment, since processors fetch lines in pairs.
#[repr(align(128))]
pub(super) struct Line {
    /// The pages of a guard each, zero where there is none.
    slots: [AtomicU64; SLOTS],
}

impl Line {
    fn new() -> Self {
        Self { slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// The pages that a slot names.
    pub(super) fn pages(&self, slot: usize) -> Option<PageRange> {
        PageRange::from_word(self.slots[slot].load(order::scan()))
    }
}

struct Registered {
    line: Arc<Line>,
    owner: Arc<str>,
}

/// The guards of all devices on one map.
pub struct Guards {
    plane: Arc<StatePlane>,
    lines: RwLock<Vec<Registered>>,
    pins: Pins,
}

impl Guards {
    /// No guards yet, on this map.
    pub fn new(plane: Arc<StatePlane>) -> Arc<Self> {
        Arc::new(Self { plane, lines: RwLock::new(Vec::new()), pins: Pins::default() })
    }

    /// The map.
    pub fn plane(&self) -> &Arc<StatePlane> {
        &self.plane
    }

    /// A handle for a thread of a device. `owner` is who is told to be in the way, should a conversion have to wait.
    pub fn handle(self: &Arc<Self>, owner: &str) -> GuardHandle {
        let line = Arc::new(Line::new());
        let owner: Arc<str> = owner.into();
        let registered = Registered { line: line.clone(), owner: owner.clone() };
        self.lines.write().unwrap_or_else(|e| e.into_inner()).push(registered);
        let holders = std::array::from_fn(|slot| Holder::new(slot, &line, self));
        GuardHandle {
            holders,
            line,
            bits: self.plane.refused_bits(),
            overflow: OnceCell::new(),
            guards: self.clone(),
            owner,
        }
    }

    /// Pins pages until the pin is dropped, on whatever thread.
    ///
    /// # Errors
    /// The first page that devices are refused; nothing is pinned then.
    pub fn pin(self: &Arc<Self>, ranges: &[PageRange], owner: &Arc<str>) -> Result<Pin, Refused> {
        let pinned = self.pin_inner(ranges, owner)?;
        Ok(Pin { guards: self.clone(), pinned })
    }

    fn pin_inner(&self, ranges: &[PageRange], owner: &Arc<str>) -> Result<Pinned, Refused> {
        let pinned = self.pins.insert(ranges.iter().copied(), owner);
        match ranges.iter().find_map(|range| self.plane.first_refused(*range)) {
            None => Ok(pinned),
            Some(page) => {
                self.pins.remove(&pinned);
                Err(Refused { page })
            }
        }
    }

    /// All pins.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The slots that name a page of this range now, with their owners.
    pub(super) fn overlapping(&self, range: PageRange) -> Vec<(Arc<Line>, usize, Arc<str>)> {
        let mut found = Vec::new();
        for Registered { line, owner } in self.lines.read().unwrap_or_else(|e| e.into_inner()).iter() {
            // All at once: the line is likely to be taken back by its owner between two looks.
            let words: [u64; SLOTS] = std::array::from_fn(|slot| line.slots[slot].load(order::scan()));
            for (slot, pages) in words.into_iter().map(PageRange::from_word).enumerate() {
                if pages.is_some_and(|pages| pages.overlaps(range)) {
                    found.push((line.clone(), slot, owner.clone()));
                }
            }
        }
        found
    }
}

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guards").field("plane", &self.plane).finish_non_exhaustive()
    }
}

/// A page that devices are refused, or that the map doesn't have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The first such page of what was asked for.
    pub page: u64,
}

/// One thread's means to guard pages. It can be sent to another thread, and used by one at a time.
pub struct GuardHandle {
    /// What holds the slots of the line.
    holders: [Holder; SLOTS],
    line: Arc<Line>,
    bits: RefusedBits,
    /// What is held beyond the slots.
    overflow: OnceCell<Box<Overflow>>,
    guards: Arc<Guards>,
    owner: Arc<str>,
}

impl GuardHandle {
    /// Guards a range of pages.
    ///
    /// # Errors
    /// The first page that devices are refused; nothing is guarded then.
    #[inline(always)]
    pub fn guard(&self, range: PageRange) -> Result<Guard<'_>, Refused> {
        let (Some((word, mask)), [holder, ..], [place, ..]) = (self.bits.word(range), &self.holders, &self.line.slots)
        else {
            return self.guard_slowly(range);
        };
        if !holder.is_free() {
            return self.guard_slowly(range);
        }
        place.swap(range.to_word(), order::publish());
        if word.load(order::test()) & mask != 0 {
            place.store(0, order::clear());
            return Err(self.refused(range));
        }
        holder.count.set(1);
        Ok(Guard(holder))
    }

    /// Guards a range of pages for longer than an access: leaves the slot that [`GuardHandle::guard`] is quickest with.
    ///
    /// # Errors
    /// The first page that devices are refused; nothing is guarded then.
    pub fn guard_long(&self, range: PageRange) -> Result<Guard<'_>, Refused> {
        self.guard_with(self.holders.iter().rev().find(|holder| holder.is_free()), range)
    }

    /// Guards beyond the first, and of more pages than one word has bits for.
    #[cold]
    #[inline(never)]
    fn guard_slowly(&self, range: PageRange) -> Result<Guard<'_>, Refused> {
        self.guard_with(self.holders.iter().find(|holder| holder.is_free()), range)
    }

    fn guard_with<'a>(&'a self, holder: Option<&'a Holder>, range: PageRange) -> Result<Guard<'a>, Refused> {
        let Some(holder) = holder else { return self.guard_by_pin(range) };
        let place = &self.line.slots[holder.slot];
        place.swap(range.to_word(), order::publish());
        if let Some(page) = self.guards.plane.first_refused(range) {
            place.store(0, order::clear());
            return Err(Refused { page });
        }
        holder.count.set(1);
        Ok(Guard(holder))
    }

    fn guard_by_pin(&self, range: PageRange) -> Result<Guard<'_>, Refused> {
        let pinned = self.guards.pin_inner(&[range], &self.owner)?;
        let mut overflow = &self.overflow;
        loop {
            let more = overflow.get_or_init(|| Box::new(Overflow::new(&self.line, &self.guards)));
            if let Some(holder) = more.holders.iter().find(|holder| holder.is_free()) {
                holder.count.set(1);
                holder.pinned.set(Some(pinned));
                return Ok(Guard(holder));
            }
            overflow = &more.next;
        }
    }

    /// Which page it was. It may have become shared since: then the first one will do.
    #[cold]
    #[inline(never)]
    fn refused(&self, range: PageRange) -> Refused {
        Refused { page: self.guards.plane.first_refused(range).unwrap_or(range.first()) }
    }

    /// Who this handle is for.
    pub fn owner(&self) -> &Arc<str> {
        &self.owner
    }

    /// The guards that this handle is part of.
    pub fn guards(&self) -> &Arc<Guards> {
        &self.guards
    }
}

/// What keeps a guard up: a slot, or a pin.
struct Holder {
    /// How many guards share it; zero if it is free.
    count: Cell<usize>,
    /// Which slot, [`NO_SLOT`] for a pin.
    slot: usize,
    line: Arc<Line>,
    pinned: Cell<Option<Pinned>>,
    guards: Arc<Guards>,
}

/// Stands for a slot where there is none.
const NO_SLOT: usize = SLOTS;

impl Holder {
    fn new(slot: usize, line: &Arc<Line>, guards: &Arc<Guards>) -> Self {
        let (line, guards) = (line.clone(), guards.clone());
        Self { count: Cell::new(0), slot, line, pinned: Cell::new(None), guards }
    }

    #[inline(always)]
    fn is_free(&self) -> bool {
        self.count.get() == 0
    }

    #[inline(always)]
    fn end(&self) {
        match self.line.slots.get(self.slot) {
            Some(place) => place.store(0, order::clear()),
            None => self.unpin(),
        }
    }

    #[cold]
    #[inline(never)]
    fn unpin(&self) {
        if let Some(pinned) = self.pinned.take() {
            self.guards.pins.remove(&pinned);
        }
    }
}

/// Holders beyond the slots, and more of them. They stay where they are, so that guards can point at them.
struct Overflow {
    holders: [Holder; 16],
    next: OnceCell<Box<Overflow>>,
}

impl Overflow {
    fn new(line: &Arc<Line>, guards: &Arc<Guards>) -> Self {
        Self { holders: std::array::from_fn(|_| Holder::new(NO_SLOT, line, guards)), next: OnceCell::new() }
    }
}

impl Drop for GuardHandle {
    fn drop(&mut self) {
        // Guards borrow the handle, so there are none, except such as were forgotten: those end here.
        for slot in &self.line.slots {
            slot.store(0, order::clear());
        }
        let mut next = self.overflow.get();
        while let Some(overflow) = next {
            overflow.holders.iter().for_each(Holder::unpin);
            next = overflow.next.get();
        }
        let mut lines = self.guards.lines.write().unwrap_or_else(|e| e.into_inner());
        lines.retain(|registered| !Arc::ptr_eq(&registered.line, &self.line));
    }
}

impl fmt::Debug for GuardHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardHandle").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// Proof that the pages of a range stay shared until it, and all its clones, are dropped.
pub struct Guard<'a>(&'a Holder);

impl Clone for Guard<'_> {
    #[inline(always)]
    fn clone(&self) -> Self {
        self.0.count.set(self.0.count.get() + 1);
        Self(self.0)
    }
}

impl Drop for Guard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            self.0.end();
        }
    }
}

impl fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("holders", &self.0.count).finish_non_exhaustive()
    }
}

/// Pages that stay shared until this is dropped, on whatever thread.
pub struct Pin {
    guards: Arc<Guards>,
    pinned: Pinned,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.guards.pins.remove(&self.pinned);
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").finish_non_exhaustive()
    }
}
