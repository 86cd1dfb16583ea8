//! Guest memory that was checked once, and is held for longer than an access: windows and pinned memory.

use std::iter::FusedIterator;

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult as Result, Permissions,
    VolatileMemory, VolatileSlice,
};

use super::device_memory::DeviceMemory;
use super::guard::Guard;
use super::guards::Pin;
use super::sync::Arc;

/// Bytes that were checked once and stay shared for as long as this is held.
#[derive(Debug)]
pub struct Window<'v> {
    slice: VolatileSlice<'v>,
    start: u64,
    _guard: Guard<'v>,
}

impl<'v> Window<'v> {
    pub(super) fn new(slice: VolatileSlice<'v>, start: u64, guard: Guard<'v>) -> Self {
        Self { slice, start, _guard: guard }
    }

    /// The bytes.
    #[inline(always)]
    pub fn slice(&self) -> VolatileSlice<'_> {
        self.slice
    }

    /// Guest address of the first byte.
    pub fn start(&self) -> GuestAddress {
        GuestAddress(self.start)
    }
}

impl GuestMemory for Window<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    #[inline(always)]
    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.slice.len().checked_sub(count).is_some_and(|last| addr.0.wrapping_sub(self.start) <= last as u64)
    }

    #[inline(always)]
    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>> {
        let within = addr.0.wrapping_sub(self.start) as usize;
        match self.slice.get_slice(within, count) {
            Ok(slice) => Ok(OneSlice(Some(slice))),
            Err(_) => Err(GuestMemoryError::InvalidGuestAddress(addr)),
        }
    }
}

/// The slice of one access through a window.
struct OneSlice<'a>(Option<VolatileSlice<'a>>);

impl<'a> GuestMemorySliceIterator<'a, ()> for OneSlice<'a> {
    #[inline(always)]
    fn stop_on_error(self) -> Result<impl Iterator<Item = VolatileSlice<'a>>> {
        Ok(self.0.into_iter())
    }
}

impl<'a> Iterator for OneSlice<'a> {
    type Item = Result<VolatileSlice<'a>>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl FusedIterator for OneSlice<'_> {}

/// Bytes that stay shared until this is dropped, on whatever thread.
#[derive(Debug)]
pub struct PinnedMemory {
    memory: Arc<DeviceMemory>,
    /// Offset and size of each piece.
    pieces: Vec<(u64, u64)>,
    _pin: Pin,
}

impl PinnedMemory {
    pub(super) fn new(memory: Arc<DeviceMemory>, pieces: Vec<(u64, u64)>, pin: Pin) -> Self {
        Self { memory, pieces, _pin: pin }
    }

    /// The bytes, in the order in which they were named; a range in several pieces of RAM is as many slices.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        let mapping = self.memory.mapping();
        self.pieces.iter().filter_map(|(offset, size)| mapping.get_slice(*offset as usize, *size as usize).ok())
    }
}
