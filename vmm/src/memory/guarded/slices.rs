//! Slices of guest memory that carry the guard of their pages.
//!
//! vm-memory's slices have a place for a dirty bitmap, of whatever type their memory says. Here it holds a guard.
//! Whatever makes a slice out of another one (a copy, a part) also makes its bitmap out of the other's, and so takes
//! part in holding the guard.
//!
//! The types are shaped for speed: an access through vm-memory's generic code passes them through several functions, and
//! is quick only if compilers can keep them in registers.
#![expect(unsafe_code, reason = "a slice with another bitmap is made of the address of one without")]

use std::iter::FusedIterator;

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestMemoryResult as Result, VolatileSlice};

use super::guard::Guard;

/// A slice that holds its guard.
#[inline(always)]
pub(super) fn carry<'a>(slice: VolatileSlice<'a>, guard: Guard<'a>) -> GuardedSlice<'a> {
    // SAFETY: the bytes are those of a slice that lives as long.
    unsafe {
        VolatileSlice::with_bitmap(slice.ptr_guard_mut().as_ptr(), slice.len(), SliceGuard { _guard: guard }, None)
    }
}

/// The slices of one access. An access is refused as a whole or not at all, so none of them is an error.
pub(super) struct Slices<'a> {
    first: Option<GuardedSlice<'a>>,
    /// The others, if there are any. Apart, so that the usual case stays in registers.
    rest: Option<Box<ManySlices<'a>>>,
}

/// A slice that holds its guard.
pub(super) type GuardedSlice<'a> = VolatileSlice<'a, SliceGuard<'a>>;

/// The slices of an access that is not to one piece of RAM.
pub(super) type ManySlices<'a> = std::vec::IntoIter<GuardedSlice<'a>>;

impl<'a> Slices<'a> {
    #[inline(always)]
    pub(super) fn one(slice: GuardedSlice<'a>) -> Self {
        Self { first: Some(slice), rest: None }
    }

    #[inline(always)]
    pub(super) fn many(slices: Box<ManySlices<'a>>) -> Self {
        Self { first: None, rest: Some(slices) }
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<GuardedSlice<'a>> {
        match self.first.take() {
            Some(first) => Some(first),
            None => self.rest.as_mut()?.next(),
        }
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<GuardedSlice<'a>>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.pop().map(Ok)
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, SliceGuard<'a>> for Slices<'a> {
    #[inline(always)]
    fn stop_on_error(self) -> Result<impl Iterator<Item = GuardedSlice<'a>>> {
        Ok(Unfailing(self))
    }
}

/// The same, as those want them who stop on errors.
struct Unfailing<'a>(Slices<'a>);

impl<'a> Iterator for Unfailing<'a> {
    type Item = GuardedSlice<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.pop()
    }
}

/// Stands where vm-memory wants a dirty bitmap: slices of a [`DeviceView`](super::view::DeviceView) have a guard there.
#[derive(Debug)]
pub enum GuardedPages {}

impl<'a> WithBitmapSlice<'a> for GuardedPages {
    type S = SliceGuard<'a>;
}

impl Bitmap for GuardedPages {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) -> SliceGuard<'_> {
        match *self {}
    }
}

/// The guard of a slice's pages. Each copy and each part of the slice holds it.
#[derive(Debug, Clone)]
pub struct SliceGuard<'a> {
    _guard: Guard<'a>,
}

impl<'a> WithBitmapSlice<'a> for SliceGuard<'_> {
    type S = Self;
}

impl BitmapSlice for SliceGuard<'_> {}

impl Bitmap for SliceGuard<'_> {
    #[inline(always)]
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    #[inline(always)]
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    #[inline(always)]
    fn slice_at(&self, _offset: usize) -> Self {
        self.clone()
    }
}
