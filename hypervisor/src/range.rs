//! Page-aligned ranges of guest physical addresses, and the state of a page.
//!
//! [`GpaRange`] can hold nothing but a whole, non-empty number of pages that ends below 2^63, so code that takes one
//! needs no checks for alignment, emptiness or overflow. Checks happen once, in [`GpaRange::new`], where numbers from
//! guests and operators come in.

use std::fmt;

use crate::ByteSize;

/// Size of the pages that attributes and conversions count in, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Ranges end at or below this address. It is above every x86 guest physical address (52 bits).
const LIMIT: u64 = 1 << 63;

/// Whether host user space can map a guest page. Two states, no third.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageState {
    /// User-mappable: host user space can map the page; devices may use it. The default.
    Shared,
    /// User-unmappable: no process in host user space can map the page.
    Private,
}

impl PageState {
    /// The other state.
    #[inline]
    pub fn other(self) -> Self {
        match self {
            Self::Shared => Self::Private,
            Self::Private => Self::Shared,
        }
    }
}

impl fmt::Display for PageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Private => "private",
        })
    }
}

/// Why two numbers are not a [`GpaRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The size is zero.
    #[error("range at {start:#x} is empty")]
    Empty {
        /// First address.
        start: u64,
    },
    /// Start or size is not a multiple of the page size.
    #[error("range at {start:#x} of {} is not aligned to {PAGE_SIZE}-byte pages", ByteSize(*size))]
    Unaligned {
        /// First address.
        start: u64,
        /// Size in bytes.
        size: u64,
    },
    /// The end is not an address.
    #[error("range at {start:#x} of {} ends beyond the address space", ByteSize(*size))]
    TooLarge {
        /// First address.
        start: u64,
        /// Size in bytes.
        size: u64,
    },
}

/// A non-empty range of whole pages of guest physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GpaRange {
    start: u64,
    size: u64,
}

impl GpaRange {
    /// The range of `size` bytes at `start`.
    ///
    /// # Errors
    /// Whatever is empty, unaligned, or ends above 2^63.
    #[inline]
    pub const fn new(start: u64, size: u64) -> Result<Self, RangeError> {
        if size == 0 {
            return Err(RangeError::Empty { start });
        }
        if !start.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::Unaligned { start, size });
        }
        match start.checked_add(size) {
            Some(end) if end <= LIMIT => Ok(Self { start, size }),
            _ => Err(RangeError::TooLarge { start, size }),
        }
    }

    /// First address.
    #[inline]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Size in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    #[inline]
    pub const fn len(self) -> u64 {
        self.size
    }

    /// First address behind the range.
    #[inline]
    pub const fn end(self) -> u64 {
        self.start + self.size
    }

    /// Number of pages; never zero.
    #[inline]
    pub const fn pages(self) -> u64 {
        self.size / PAGE_SIZE
    }

    /// Whether the range holds this address.
    #[inline]
    pub const fn contains(self, address: u64) -> bool {
        address >= self.start && address < self.end()
    }

    /// Whether the range holds all of `other`.
    #[inline]
    pub const fn covers(self, other: Self) -> bool {
        other.start >= self.start && other.end() <= self.end()
    }

    /// What this range and `other` have in common.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Self { start, size: end - start })
    }

    /// The same range moved up by `offset` bytes, as an alias of it lies.
    ///
    /// # Errors
    /// An unaligned offset, or an end above 2^63.
    #[inline]
    pub fn offset_by(self, offset: u64) -> Result<Self, RangeError> {
        match self.start.checked_add(offset) {
            Some(start) => Self::new(start, self.size),
            None => Err(RangeError::TooLarge { start: self.start, size: self.size }),
        }
    }

    /// The page that holds this address.
    ///
    /// # Errors
    /// An address above 2^63.
    #[inline]
    pub fn page_of(address: u64) -> Result<Self, RangeError> {
        Self::new(address & !(PAGE_SIZE - 1), PAGE_SIZE)
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end())
    }
}

impl fmt::Debug for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_not_pages() {
        assert_eq!(GpaRange::new(0x1000, 0), Err(RangeError::Empty { start: 0x1000 }));
        assert_eq!(GpaRange::new(1, PAGE_SIZE), Err(RangeError::Unaligned { start: 1, size: PAGE_SIZE }));
        assert_eq!(GpaRange::new(0, 1), Err(RangeError::Unaligned { start: 0, size: 1 }));
        let top = !(PAGE_SIZE - 1);
        assert_eq!(GpaRange::new(top, PAGE_SIZE), Err(RangeError::TooLarge { start: top, size: PAGE_SIZE }));
        assert!(GpaRange::new(0, LIMIT).is_ok());
    }

    proptest! {
        #[test]
        fn any_numbers_are_a_range_or_an_error(start: u64, size: u64, offset: u64) {
            if let Ok(range) = GpaRange::new(start, size) {
                prop_assert_eq!(range.end() - range.start(), range.pages() * PAGE_SIZE);
                prop_assert!(range.contains(start) && !range.contains(range.end()));
                if let Ok(moved) = range.offset_by(offset) {
                    prop_assert_eq!(moved.len(), range.len());
                }
            }
        }

        #[test]
        fn intersection_holds_what_both_hold(a in 0u64..32, n in 1u64..32, b in 0u64..32, m in 1u64..32) {
            let range = |start, pages| GpaRange::new(start * PAGE_SIZE, pages * PAGE_SIZE).unwrap();
            let (left, right) = (range(a, n), range(b, m));
            let both = left.intersection(right);
            for page in 0..64 {
                let address = page * PAGE_SIZE;
                let expected = left.contains(address) && right.contains(address);
                prop_assert_eq!(both.is_some_and(|range| range.contains(address)), expected);
            }
        }
    }
}
