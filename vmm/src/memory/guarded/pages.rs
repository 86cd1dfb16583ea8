//! Page numbers: ranges of pages of guest RAM, counted from the start of the backings.
//!
//! Offsets in the backings have no holes, whatever the guest's addresses do, so a page number is an index. A
//! [`PageRange`] is never empty and fits in one machine word, which is what lets a guard be published, and a conversion
//! recorded, by a single atomic store.

use std::fmt;

use hypervisor::PAGE_SIZE;

/// The most pages that there can be: page numbers and their ends have 32 bits (16 TiB of RAM less one page).
pub const MAX_PAGES: u64 = u32::MAX as u64;

/// A non-empty range of pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageRange {
    first: u32,
    end: u32,
}

impl PageRange {
    /// The pages `first..end`; `None` if there are none, or if the end is above [`MAX_PAGES`].
    #[inline]
    pub const fn new(first: u64, end: u64) -> Option<Self> {
        if first < end && end <= MAX_PAGES { Some(Self { first: first as u32, end: end as u32 }) } else { None }
    }

    /// The pages that `size` bytes at `offset` touch; `None` for no bytes, or for an end above [`MAX_PAGES`].
    #[inline]
    pub const fn touched(offset: u64, size: u64) -> Option<Self> {
        match offset.checked_add(size) {
            Some(end) if size > 0 => Self::new(offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE)),
            _ => None,
        }
    }

    /// The same for bytes that are known to be some, and to be on pages below [`MAX_PAGES`].
    #[inline(always)]
    pub(super) const fn inside(offset: u64, size: u64) -> Self {
        debug_assert!(Self::touched(offset, size).is_some());
        Self { first: (offset / PAGE_SIZE) as u32, end: ((offset + size - 1) / PAGE_SIZE + 1) as u32 }
    }

    /// The first page.
    #[inline]
    pub const fn first(self) -> u64 {
        self.first as u64
    }

    /// The page behind the last.
    #[inline]
    pub const fn end(self) -> u64 {
        self.end as u64
    }

    /// How many pages; never zero.
    #[inline]
    pub const fn count(self) -> u64 {
        (self.end - self.first) as u64
    }

    /// Offset in the backings of the first byte.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.first() * PAGE_SIZE
    }

    /// Size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.count() * PAGE_SIZE
    }

    /// Whether this page is in the range.
    #[inline]
    pub const fn contains(self, page: u64) -> bool {
        page >= self.first() && page < self.end()
    }

    /// Whether a page is in both ranges.
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end && other.first < self.end
    }

    /// The pages that are in both ranges.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (first, end) = (self.first.max(other.first), self.end.min(other.end));
        (first < end).then_some(Self { first, end })
    }

    /// The range in one word, which is never zero.
    #[inline]
    pub(crate) const fn to_word(self) -> u64 {
        (self.end as u64) << 32 | self.first as u64
    }

    /// The range that [`PageRange::to_word`] made this word of; `None` for zero.
    #[inline]
    pub(crate) const fn from_word(word: u64) -> Option<Self> {
        Self::new(word & u32::MAX as u64, word >> 32)
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {:#x}-{:#x}", self.first, self.end)
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_range_is_refused() {
        assert_eq!(PageRange::new(3, 3), None);
        assert_eq!(PageRange::new(4, 3), None);
        assert_eq!(PageRange::new(0, MAX_PAGES + 1), None);
        assert_eq!(PageRange::touched(0, 0), None);
        assert_eq!(PageRange::touched(u64::MAX, 2), None);
        assert_eq!(PageRange::touched(0, u64::MAX), None);
        assert_eq!(PageRange::from_word(0), None);
        assert!(PageRange::new(0, MAX_PAGES).is_some());
    }

    #[test]
    fn bytes_touch_whole_pages() {
        assert_eq!(PageRange::touched(PAGE_SIZE - 1, 1), PageRange::new(0, 1));
        assert_eq!(PageRange::touched(PAGE_SIZE - 1, 2), PageRange::new(0, 2));
        assert_eq!(PageRange::touched(PAGE_SIZE, PAGE_SIZE), PageRange::new(1, 2));
    }

    proptest! {
        #[test]
        fn a_word_holds_a_range(first in 0..MAX_PAGES, count in 1..MAX_PAGES) {
            if let Some(range) = PageRange::new(first, first + count) {
                prop_assert_eq!(PageRange::from_word(range.to_word()), Some(range));
            }
        }

        #[test]
        fn ranges_overlap_where_they_share_a_page(a in 0u64..16, n in 1u64..16, b in 0u64..16, m in 1u64..16) {
            let (left, right) = (PageRange::new(a, a + n).unwrap(), PageRange::new(b, b + m).unwrap());
            let shared: Vec<u64> = (0..32).filter(|page| left.contains(*page) && right.contains(*page)).collect();
            prop_assert_eq!(left.overlaps(right), !shared.is_empty());
            let both = left.intersection(right);
            prop_assert_eq!(both.map(|range| (range.first()..range.end()).collect::<Vec<_>>()).unwrap_or_default(), shared);
        }
    }
}
