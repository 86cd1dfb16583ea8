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
        let (entries, base) = (memory.table().for_devices().clone(), Base(memory.mapping().as_ptr()));
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
        match self.entries.find(gpa.0) {
            _ if size == 0 => Err(GuestMemoryError::InvalidGuestAddress(gpa)),
            Some((offset, rest)) if size as u64 <= rest => {
                let guard = self.handle.guard_long(PageRange::inside(offset, size as u64));
                let guard = guard.map_err(|_| self.refuse(gpa.0, size))?;
                Ok(Window::new(self.slice(offset, size), gpa.0, guard))
            }
            Some((_, rest)) if self.check_range(gpa, size, Permissions::No) => {
                Err(self.refuse_page(gpa.0, size, gpa.0 + rest, Obstacle::Apart))
            }
            _ => Err(self.refuse(gpa.0, size)),
        }
    }

    /// Pins ranges of bytes, each given by its address and size, until the pin is dropped, on whatever thread.
    ///
    /// # Errors
    /// The [`RefusedAccess`] of the first range that is refused. Nothing is pinned then.
    pub fn pin(&self, ranges: &[(GuestAddress, usize)]) -> Result<PinnedMemory> {
        let mut pieces = Vec::with_capacity(ranges.len());
        for (gpa, size) in ranges {
            let found: Option<Vec<_>> = self.pieces(gpa.0, *size).collect();
            pieces.extend(found.ok_or_else(|| self.refuse(gpa.0, *size))?);
        }
        let pages: Vec<_> = pieces.iter().map(|(offset, size)| PageRange::inside(*offset, *size)).collect();
        let pin = self.memory.guards().pin(&pages, self.handle.owner()).map_err(|_| {
            let refused = ranges.iter().find(|(gpa, size)| !self.check_range(*gpa, *size, Permissions::No));
            // All are free again: it was the first of them as well as any other.
            let (gpa, size) = refused.or(ranges.first()).copied().unwrap_or((GuestAddress(0), 0));
            self.refuse(gpa.0, size)
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
        let guard = self.handle.guard_quickly(PageRange::inside(offset, size as u64))?;
        Some((self.slice(offset, size), guard))
    }

    /// Bytes of the backing that the table has in one piece.
    #[inline(always)]
    pub(super) fn slice(&self, offset: u64, size: usize) -> VolatileSlice<'_> {
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

    /// Bytes in several pieces, no bytes, bytes beside other slices that are held, and bytes that are refused. Returns
    /// pointers, which fit in registers: were this the same type as the usual case has, that would go through memory, too.
    #[cold]
    #[inline(never)]
    fn slices_slowly(&self, gpa: u64, size: usize) -> std::result::Result<Box<ManySlices<'_>>, Box<GuestMemoryError>> {
        let slices = self.pieces(gpa, size).map(|piece| {
            let (offset, size) = piece?;
            let guard = self.handle.guard(PageRange::inside(offset, size)).ok()?;
            Some(carry(self.slice(offset, size as usize), guard))
        });
        match slices.collect::<Option<Vec<_>>>() {
            Some(slices) => Ok(Box::new(slices.into_iter())),
            None => Err(Box::new(self.refuse(gpa, size))),
        }
    }

    /// The pieces of the backing that these bytes are in: offset and size of each; last of all `None`, if what comes next is
    /// no RAM for devices.
    fn pieces(&self, gpa: u64, size: usize) -> impl Iterator<Item = Option<(u64, u64)>> {
        let (mut next, mut left) = (gpa, size as u64);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let Some((offset, rest)) = self.entries.find(next) else {
                left = 0;
                return Some(None);
            };
            let part = rest.min(left);
            (next, left) = (next + part, left - part);
            Some(Some((offset, part)))
        })
    }

    /// Counts and reports a refused access.
    #[cold]
    #[inline(never)]
    fn refuse(&self, gpa: u64, size: usize) -> GuestMemoryError {
        let (page, obstacle) = self.obstacle(gpa, size);
        self.refuse_page(gpa, size, page, obstacle)
    }

    fn refuse_page(&self, gpa: u64, size: usize, page: u64, obstacle: Obstacle) -> GuestMemoryError {
        let refused = RefusedAccess { owner: self.handle.owner().clone(), gpa, size, page, obstacle };
        self.memory.refuse(&refused);
        refused.into()
    }

    /// What is in the way of `size` bytes at `gpa`, and on which page. If nothing is any more, then the first page is
    /// reported as converting: something was a moment ago.
    fn obstacle(&self, gpa: u64, size: usize) -> (u64, Obstacle) {
        let map = self.memory.map();
        let page_of = |gpa: u64| gpa / PAGE_SIZE * PAGE_SIZE;
        let mut next = gpa;
        for piece in self.pieces(gpa, size) {
            let Some((offset, part)) = piece else {
                let ram = map.table().offset_of(next).is_some();
                return (page_of(next), if ram { Obstacle::NotForDevices } else { Obstacle::NotRam });
            };
            let pages = PageRange::inside(offset, part);
            if let Some(page) = map.plane().first_refused(pages) {
                let private = map.plane().state(page) == Some(PageState::Private);
                // Within the piece, addresses are as far apart as pages.
                let at = page_of(next) + (page - pages.first()) * PAGE_SIZE;
                return (at, if private { Obstacle::Private } else { Obstacle::Converting });
            }
            next += part;
        }
        (page_of(gpa), Obstacle::Converting)
    }
}

impl GuestMemory for DeviceView {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = GuardedPages;

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        let plane = self.memory.map().plane();
        let allowed = |(offset, size)| plane.first_refused(PageRange::inside(offset, size)).is_none();
        self.pieces(addr.0, count).all(|piece| piece.is_some_and(allowed))
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
