//! Guards: proof that pages stay shared until it is dropped.
//!
//! A guard publishes its page range in a slot of its handle's cache line, then tests the refused bits of its pages: the
//! order in which the two are done is what the whole protocol rests on (see [`super`]). Ending a guard clears the slot.
//!
//! Cost: one atomic exchange and one load to begin a guard, one store to end it. As many guards as there are slots can
//! be held at a time by one handle; further ones still work, as pins, at the price of a mutex. What holds them is kept
//! for the next time: 64 bytes for each, at most twice as many as there were at any time.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;

use super::guards::{Guards, Line, Pin, Refused};
use super::pages::PageRange;
use super::state_plane::RefusedBits;
use super::sync::{Arc, SLOTS, order};

/// One thread's means to guard pages. It can be sent to another thread, and used by one at a time.
pub struct GuardHandle {
    /// What holds the slots of the line.
    holders: [Holder; SLOTS],
    line: Arc<Line>,
    bits: RefusedBits,
    overflow: Overflow,
    guards: Arc<Guards>,
    owner: Arc<str>,
}

impl GuardHandle {
    pub(super) fn new(guards: &Arc<Guards>, owner: Arc<str>) -> Self {
        let plane = guards.plane();
        let line = plane.registry.enter(&owner);
        Self {
            holders: std::array::from_fn(|slot| Holder::new(slot, &line)),
            bits: plane.refused_bits(),
            overflow: Overflow::new(&line),
            line,
            guards: guards.clone(),
            owner,
        }
    }

    /// Guards a range of pages.
    ///
    /// # Errors
    /// The first page that devices are refused; nothing is guarded then.
    pub fn guard(&self, range: PageRange) -> Result<Guard<'_>, Refused> {
        self.guard_with(self.holders.iter().find(|holder| holder.is_free()), range)
    }

    /// Guards a range of pages for longer than an access: leaves the first slot, with which guards are quickest.
    ///
    /// # Errors
    /// The first page that devices are refused; nothing is guarded then.
    pub fn guard_long(&self, range: PageRange) -> Result<Guard<'_>, Refused> {
        self.guard_with(self.holders.iter().rev().find(|holder| holder.is_free()), range)
    }

    /// Guards pages whose bits are in one word, with the first slot. `None` if it is taken, and also if a page is refused:
    /// [`GuardHandle::guard`] knows the rest.
    #[inline(always)]
    pub(super) fn guard_quickly(&self, range: PageRange) -> Option<Guard<'_>> {
        let (word, mask) = self.bits.word(range)?;
        let ([holder, ..], [place, ..]) = (&self.holders, &self.line.slots);
        if !holder.is_free() {
            return None;
        }
        place.swap(range.to_word(), order::publish());
        if word.load(order::test()) & mask != 0 {
            place.store(0, order::clear());
            return None;
        }
        Some(holder.hold())
    }

    fn guard_with<'a>(&'a self, free: Option<&'a Holder>, range: PageRange) -> Result<Guard<'a>, Refused> {
        let Some(holder) = free else {
            let pin = self.guards.pin(&[range], &self.owner)?;
            let holder = self.overflow.take();
            holder.pin.replace(Some(pin));
            return Ok(holder.hold());
        };
        let place = &self.line.slots[holder.slot];
        place.swap(range.to_word(), order::publish());
        if let Some(page) = self.guards.plane().first_refused(range) {
            place.store(0, order::clear());
            return Err(Refused { page });
        }
        Ok(holder.hold())
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

impl Drop for GuardHandle {
    fn drop(&mut self) {
        // Guards borrow the handle, so there are none, except such as were forgotten: those end here.
        for slot in &self.line.slots {
            slot.store(0, order::clear());
        }
        self.guards.plane().registry.leave(&self.line);
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

/// What keeps a guard up: a slot, or a pin.
struct Holder {
    /// How many guards share it; zero if it is free.
    count: Cell<usize>,
    /// Which slot, [`NO_SLOT`] for a pin.
    slot: usize,
    line: Arc<Line>,
    pin: RefCell<Option<Pin>>,
}

/// Stands for a slot where there is none.
const NO_SLOT: usize = SLOTS;

impl Holder {
    fn new(slot: usize, line: &Arc<Line>) -> Self {
        Self { count: Cell::new(0), slot, line: line.clone(), pin: RefCell::new(None) }
    }

    #[inline(always)]
    fn is_free(&self) -> bool {
        self.count.get() == 0
    }

    /// The guard that this holds from now on.
    #[inline(always)]
    fn hold(&self) -> Guard<'_> {
        self.count.set(1);
        Guard(self)
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
        self.pin.take();
    }
}

/// What holds guards beyond the slots. Holders stay where they are, so that guards can point at them; they come in blocks,
/// each of which doubles their number.
struct Overflow {
    line: Arc<Line>,
    blocks: OnceCell<Box<Block>>,
    /// Holders that are free, by block and place in it. There may be others.
    free: RefCell<Vec<(usize, usize)>>,
}

struct Block {
    holders: Box<[Holder]>,
    next: OnceCell<Box<Block>>,
}

impl Overflow {
    /// Holders of the first block.
    const FIRST: usize = 16;

    fn new(line: &Arc<Line>) -> Self {
        Self { line: line.clone(), blocks: OnceCell::new(), free: RefCell::new(Vec::new()) }
    }

    /// A free holder.
    fn take(&self) -> &Holder {
        loop {
            let free = self.free.borrow_mut().pop();
            let holder = free.and_then(|(block, place)| self.blocks().nth(block)?.holders.get(place));
            match holder {
                Some(holder) => return holder,
                None => self.collect(),
            }
        }
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        std::iter::successors(self.blocks.get(), |block| block.next.get()).map(|block| &**block)
    }

    /// Lists the free holders, and makes more unless half of all are free: so listing them costs little for each.
    fn collect(&self) {
        let mut free = self.free.borrow_mut();
        let (mut count, mut all, mut next) = (0, 0, &self.blocks);
        for block in self.blocks() {
            let places = block.holders.iter().enumerate().filter(|(_, holder)| holder.is_free());
            free.extend(places.map(|(place, _)| (count, place)));
            (count, all, next) = (count + 1, all + block.holders.len(), &block.next);
        }
        if free.len() <= all / 2 {
            let more = all.max(Self::FIRST);
            let holders = (0..more).map(|_| Holder::new(NO_SLOT, &self.line)).collect();
            next.get_or_init(|| Box::new(Block { holders, next: OnceCell::new() }));
            free.extend((0..more).map(|place| (count, place)));
        }
    }
}
