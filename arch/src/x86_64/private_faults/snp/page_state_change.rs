//! The buffer of page state changes in a GHCB.
//!
//! ```text
//! header  15:0 current entry   31:16 last entry   63:32 reserved
//! entry   11:0 current page   51:12 frame   55:52 operation   56 2-MiB page   63:57 reserved
//! ```
//!
//! Entries are worked off in order. *Current entry* and each entry's *current page* tell the guest how far that has come:
//! what lies before them is done and stays done, whatever becomes of the rest. Neighbours that ask for the same and are
//! whole pages of the same size become one request, as KVM merges them. Hints change no state and are done at once; KVM
//! takes other operations for hints, which here are refused.
//!
//! The guest can write to the buffer at any time. So this works on a copy, and what is written back is taken from there.

use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use super::{FRAME, Operation, operation};
use crate::x86_64::MemoryLayout;
use crate::x86_64::private_faults::{ConversionRequest, Origin, Refusal};

/// How many entries fit into a GHCB.
pub const MAX_ENTRIES: u16 = 253;

/// Bits 11:0: the current page.
const CURRENT_PAGE: u64 = 0xfff;
/// Bit 56: the page has 2 MiB.
const LARGE: u64 = 1 << 56;
/// Bits 63:57.
const RESERVED: u64 = 0x7f << 57;
/// How many pages of 4 KiB a page of 2 MiB is.
const LARGE_PAGES: u64 = 512;

/// A guest's buffer of page state changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageStateChange {
    current: u16,
    last: u16,
    entries: Vec<u64>,
}

/// The next entries that become one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The request; `None` if nothing needs to be done for it.
    pub request: Option<ConversionRequest>,
    /// The first entry behind it.
    end: u16,
}

/// What an entry says is left to do.
struct Entry {
    operation: Operation,
    large: bool,
    begun: bool,
    start: u64,
    pages: u64,
}

impl PageStateChange {
    /// The buffer with this header and these entries, a copy of all that lies in the GHCB.
    ///
    /// # Errors
    /// A header with reserved bits, or one that tells of more entries than there are.
    pub fn new(header: u64, entries: &[u64]) -> Result<Self, Refusal> {
        let [current, last] = [header as u16, (header >> 16) as u16];
        let entries = entries.get(..=usize::from(last)).filter(|_| last < MAX_ENTRIES && header >> 32 == 0);
        let entries = entries.ok_or(Refusal::BadHeader { header })?.to_vec();
        Ok(Self { current, last, entries })
    }

    /// The next batch; `None` once all is done. Without a [`PageStateChange::complete`] it is the same one again.
    ///
    /// # Errors
    /// An entry that means nothing, or a batch that is not all RAM. The header then names the entry.
    pub fn next_batch(&mut self, layout: &MemoryLayout) -> Result<Option<Batch>, Refusal> {
        while self.current <= self.last {
            let first = self.entry(self.current)?;
            match first.operation {
                Operation::Assign(to) if first.pages > 0 => return self.batch(layout, first, to).map(Some),
                _ => self.finish_entry(),
            }
        }
        Ok(None)
    }

    /// Records that a batch is done.
    pub fn complete(&mut self, batch: &Batch) {
        while self.current < batch.end.min(self.last + 1) {
            self.finish_entry();
        }
    }

    /// The header as the guest is to see it.
    pub fn header(&self) -> u64 {
        u64::from(self.last) << 16 | u64::from(self.current)
    }

    /// The entries as the guest is to see them, as many as its header told of.
    pub fn entries(&self) -> &[u64] {
        &self.entries
    }

    fn batch(&self, layout: &MemoryLayout, first: Entry, to: PageState) -> Result<Batch, Refusal> {
        let (mut pages, mut end) = (first.pages, self.current + 1);
        // A page that is done in part is made up of small ones.
        let large = first.large && !first.begun;
        while end <= self.last
            && let Ok(next) = self.entry(end)
            && next.operation == first.operation
            && next.large == large
            && next.start == first.start + pages * PAGE_SIZE
        {
            pages += next.pages;
            end += 1;
        }
        let range = GpaRange::new(first.start, pages * PAGE_SIZE)?;
        let request = ConversionRequest::announced(layout, range, to, Origin::SnpPageState)?;
        Ok(Batch { request, end })
    }

    fn entry(&self, index: u16) -> Result<Entry, Refusal> {
        let entry = self.entries.get(usize::from(index)).copied().unwrap_or_default();
        let bad = Refusal::BadEntry { index, entry };
        let large = entry & LARGE != 0;
        let pages = if large { LARGE_PAGES } else { 1 };
        let (start, done) = (entry & FRAME, entry & CURRENT_PAGE);
        let left = pages.checked_sub(done).ok_or(bad)?;
        if entry & RESERVED != 0 || !start.is_multiple_of(pages * PAGE_SIZE) {
            return Err(bad);
        }
        let operation = operation(entry).ok_or(bad)?;
        Ok(Entry { operation, large, begun: done > 0, start: start + done * PAGE_SIZE, pages: left })
    }

    /// Marks the current entry as done and goes on to the next.
    fn finish_entry(&mut self) {
        if let Some(entry) = self.entries.get_mut(usize::from(self.current)) {
            let pages = if *entry & LARGE != 0 { LARGE_PAGES } else { 1 };
            *entry = *entry & !CURRENT_PAGE | pages;
        }
        self.current += 1;
    }
}

#[cfg(test)]
mod tests;
