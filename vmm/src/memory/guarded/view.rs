//! What devices see of guest memory: a view that lets them at shared pages only.
//!
//! A [`DeviceView`] is vm-memory's [`GuestMemory`], so code written for that, such as virtio-queue, works with it as it
//! is. Each slice that it hands out carries the [`Guard`] of its pages, in the place where vm-memory keeps a slice's
//! dirty bitmap: a copy of the slice is a holder of the guard, and the guard ends with the last of them. So a slice
//! can't outlive its guard, and an access through `read_obj` and its like holds one for just as long as it takes.
//!
//! ```text
//! view.read_obj(gpa)      look up, guard, copy, end the guard
//! view.window(gpa, size)  look up and guard once; then plain access for as long as the window is held
//! view.pin(ranges)        the same for long operations that end elsewhere, such as asynchronous I/O
//! ```
//!
//! Guarantees:
//! * An access touches all of its bytes or none: if any page of it is private, is being converted, is no RAM for
//!   devices, then the error is a [`RefusedAccess`] that says which and why, and the refusal is counted and reported.
//! * While a slice, window or pin is held, its pages stay shared. A conversion of any other page does not wait for it.
//! * Whoever holds one for long makes a conversion of its pages wait. Windows are for the time of one batch of work.
#![expect(unsafe_code, reason = "slices are made of the address of the mapping, which the table has checked already")]

use hypervisor::{PAGE_SIZE, PageState};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult as Result,
    Permissions, VolatileMemory, VolatileSlice,
};

use super::device_memory::DeviceMemory;
use super::guard::{Guard, GuardHandle};
use super::held::{PinnedMemory, Window};
use super::pages::PageRange;
use super::ram_table::Entries;
use super::refusal::{Obstacle, RefusedAccess};
use super::slices::{GuardedPages, ManySlices, Slices, carry};
use super::sync::Arc;

/// One thread's view of guest memory. It can be sent to another thread, and used by one at a time.
#[derive(Debug)]
pub struct DeviceView {
    handle: GuardHandle,
    entries: Entries,
    base: Base,
    memory: Arc<DeviceMemory>,
}

/// Where a mapping begins.
#[derive(Debug, Clone, Copy)]
struct Base(*mut u8);

// SAFETY: it is only ever used beside the mapping that it is the address of, which may be used by any thread.
unsafe impl Send for Base {}

impl DeviceView {
    pub(super) fn new(memory: &Arc<DeviceMemory>, handle: GuardHandle) -> Self {
        let (entries, base) = (memory.table().entries().clone(), Base(memory.mapping().as_ptr()));
        Self { handle, entries, base, memory: memory.clone() }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// The [`RefusedAccess`].
    #[inline(always)]
    pub fn read_obj<T: ByteValued>(&self, gpa: GuestAddress) -> Result<T> {
        match self.piece(gpa.0, size_of::<T>()) {
            Some((slice, _guard)) => Ok(slice.get_ref(0)?.load()),
            None => Bytes::read_obj(self, gpa),
        }
    }

    /// Writes a value.
    ///
    /// # Errors
    /// The [`RefusedAccess`].
    #[inline(always)]
    pub fn write_obj<T: ByteValued>(&self, value: T, gpa: GuestAddress) -> Result<()> {
        match self.piece(gpa.0, size_of::<T>()) {
            Some((slice, _guard)) => {
                slice.get_ref(0)?.store(value);
                Ok(())
            }
            None => Bytes::write_obj(self, value, gpa),
        }
    }

    /// Guards `size` bytes once, for plain access while the window is held.
    ///
    /// # Errors
    /// The [`RefusedAccess`], which bytes in more than one piece of RAM are, too; or no bytes at all.
    pub fn window(&self, gpa: GuestAddress, size: usize) -> Result<Window<'_>> {
        let mut pieces = self.pieces(gpa.0, size)?.into_iter();
        let (Some((offset, first)), None) = (pieces.next(), pieces.next()) else {
            return Err(match self.entries.find(gpa.0) {
                Some((_, rest)) if size > 0 => self.refuse_page(gpa.0, size, gpa.0 + rest, Obstacle::Apart),
                _ => GuestMemoryError::InvalidGuestAddress(gpa),
            });
        };
        let guard = self.handle.guard_long(PageRange::inside(offset, first));
        let guard = guard.map_err(|_| self.refuse(gpa.0, size, gpa.0))?;
        Ok(Window::new(self.slice(offset, size), gpa.0, guard))
    }

    /// Pins ranges of bytes, each given by its address and size, until the pin is dropped, on whatever thread.
    ///
    /// # Errors
    /// The [`RefusedAccess`] of the first range that is refused. Nothing is pinned then.
    pub fn pin(&self, ranges: &[(GuestAddress, usize)]) -> Result<PinnedMemory> {
        let mut pieces = Vec::with_capacity(ranges.len());
        for (gpa, size) in ranges {
            pieces.extend(self.pieces(gpa.0, *size)?);
        }
        let pages: Vec<_> = pieces.iter().map(|(offset, size)| PageRange::inside(*offset, *size)).collect();
        let pin = self.memory.guards().pin(&pages, self.handle.owner()).map_err(|_| {
            let refused = ranges.iter().find(|(gpa, size)| !self.check_range(*gpa, *size, Permissions::No));
            // All are free again: it was the first of them as well as any other.
            let (gpa, size) = refused.or(ranges.first()).copied().unwrap_or((GuestAddress(0), 0));
            self.refuse(gpa.0, size, gpa.0)
        })?;
        Ok(PinnedMemory::new(self.memory.clone(), pieces, pin))
    }

    /// Who this view is for.
    pub fn owner(&self) -> &Arc<str> {
        self.handle.owner()
    }

    /// All memory that devices may use.
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Bytes in one piece of RAM, all of them shared, and their guard.
    #[inline(always)]
    fn piece(&self, gpa: u64, size: usize) -> Option<(VolatileSlice<'_>, Guard<'_>)> {
        let (offset, rest) = self.entries.find(gpa)?;
        if size as u64 > rest || size == 0 {
            return None;
        }
        let guard = self.handle.guard(PageRange::inside(offset, size as u64)).ok()?;
        Some((self.slice(offset, size), guard))
    }

    /// Bytes of the backing that the table has in one piece.
    #[inline(always)]
    fn slice(&self, offset: u64, size: usize) -> VolatileSlice<'_> {
        // SAFETY: a table has no bytes outside of its backing, which is the mapping, and the mapping lives as long as the
        // view. All who use these bytes do so by volatile or atomic accesses, or by system calls.
        unsafe { VolatileSlice::new(self.base.0.wrapping_add(offset as usize), size) }
    }

    #[inline(always)]
    fn slices(&self, gpa: u64, size: usize) -> Result<Slices<'_>> {
        match self.piece(gpa, size) {
            Some((slice, guard)) => Ok(Slices::one(carry(slice, guard))),
            None => match self.slices_slowly(gpa, size) {
                Ok(slices) => Ok(Slices::many(slices)),
                Err(error) => Err(*error),
            },
        }
    }

    /// Bytes in several pieces, no bytes, and bytes that are refused. Returns pointers, which fit in registers: were
    /// this the same type as the usual case has, that would go through memory as well.
    #[cold]
    #[inline(never)]
    fn slices_slowly(&self, gpa: u64, size: usize) -> std::result::Result<Box<ManySlices<'_>>, Box<GuestMemoryError>> {
        let mut slices = Vec::new();
        for (offset, size_of_piece) in self.pieces(gpa, size)? {
            let guard = self.handle.guard(PageRange::inside(offset, size_of_piece));
            let guard = guard.map_err(|_| self.refuse(gpa, size, gpa))?;
            slices.push(carry(self.slice(offset, size_of_piece as usize), guard));
        }
        Ok(Box::new(slices.into_iter()))
    }

    /// The pieces of the backing that these bytes are in: offset and size of each.
    fn pieces(&self, gpa: u64, size: usize) -> Result<Vec<(u64, u64)>> {
        let mut pieces = Vec::with_capacity(1);
        let (mut next, mut left) = (gpa, size as u64);
        while left > 0 {
            let (offset, rest) = self.entries.find(next).ok_or_else(|| self.refuse(gpa, size, next))?;
            let part = rest.min(left);
            pieces.push((offset, part));
            left -= part;
            next += part;
        }
        Ok(pieces)
    }

    /// Counts and reports a refused access to `size` bytes at `gpa`. What is in the way is at `from` or behind.
    #[cold]
    #[inline(never)]
    fn refuse(&self, gpa: u64, size: usize, from: u64) -> GuestMemoryError {
        let (page, obstacle) = self.obstacle(from, size as u64 - (from - gpa));
        self.refuse_page(gpa, size, page, obstacle)
    }

    fn refuse_page(&self, gpa: u64, size: usize, page: u64, obstacle: Obstacle) -> GuestMemoryError {
        let refused = RefusedAccess { owner: self.handle.owner().clone(), gpa, size, page, obstacle };
        self.memory.refuse(&refused);
        refused.into()
    }

    /// What is in the way of `size` bytes at `gpa`, and on which page. If nothing is any more, then the first page is
    /// reported as converting: something was a moment ago.
    fn obstacle(&self, gpa: u64, size: u64) -> (u64, Obstacle) {
        let table = self.memory.table();
        let plane = self.memory.guards().plane();
        let page_of = |gpa: u64| gpa / PAGE_SIZE * PAGE_SIZE;
        let (mut next, mut left) = (gpa, size);
        while left > 0 {
            let Some((offset, rest)) = self.entries.find(next) else {
                let obstacle = if table.is_ram(next) { Obstacle::NotForDevices } else { Obstacle::NotRam };
                return (page_of(next), obstacle);
            };
            let part = rest.min(left);
            if let Some(page) = plane.first_refused(PageRange::inside(offset, part)) {
                let private = plane.state(page) == Some(PageState::Private);
                let obstacle = if private { Obstacle::Private } else { Obstacle::Converting };
                return (table.gpa_of(page).unwrap_or(page_of(next)), obstacle);
            }
            left -= part;
            next += part;
        }
        (page_of(gpa), Obstacle::Converting)
    }
}

impl GuestMemory for DeviceView {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = GuardedPages;

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        let plane = self.memory.guards().plane();
        let (mut next, mut left) = (addr.0, count as u64);
        while left > 0 {
            let Some((offset, rest)) = self.entries.find(next) else { return false };
            let part = rest.min(left);
            if plane.first_refused(PageRange::inside(offset, part)).is_some() {
                return false;
            }
            left -= part;
            next += part;
        }
        true
    }

    #[inline(always)]
    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        self.slices(addr.0, count)
    }
}
