//! The layout of guest RAM: which ranges it has, which aliases each range has, and what a conversion does to them.
//!
//! An isolation owns the layout. It is data: the conversion engine walks it and knows no isolation by name.
//!
//! * A [`RamRange`] is a piece of RAM at the addresses by which attributes and conversions name it. It has bytes in up to
//!   two backings, shared and private, at the same offset in each.
//! * An [`Alias`] is a place where the guest sees the range: one memory slot. Its [`AttributeRule`] says what KVM's
//!   attribute is there: fixed for good, or following the state of the page.
//! * A conversion sets the attribute on each alias that follows ([`RamRange::attributes`]), then discards the side that the
//!   page has left.
//!
//! | isolation | aliases of a range | attribute |
//! |---|---|---|
//! | `none` | one: shared | fixed, shared |
//! | `software` | at 0: shared only; at C (the C-bit): private only | at 0: follows, so that a touch of a private page exits; at C: fixed, private |
//! | [`MemoryLayout::one_alias`] | one: shared and private | follows |
//!
//! The last is for VM types whose processor tells a private access from a shared one, by a bit that is no part of the
//! address: SEV-SNP and TDX. No isolation of the command line has it yet.
//!
//! With `software`, the private alias of a shared page stays private: a stray touch there lands in private memory, never
//! in what the VMM maps. That costs one attribute call for each conversion, and a guest that makes such touches holds
//! the pages it so touches twice, at worst.
//!
//! Below 640 KiB the shared alias of `software` is always open, since processors start there, and is never given to
//! devices.

use hypervisor::{ByteSize, GpaRange, PAGE_SIZE, PageState, RangeError};

use super::Isolation;
use super::map::{HIGH_RAM_START, LOW_END, LOW_RAM_LIMIT};

mod aliasing;

pub use aliasing::{Alias, Aliasing, AttributeRule};

/// The least RAM that a layout is made for, in bytes: the first MiB and one page.
const MIN_RAM: u64 = 0x10_0000 + PAGE_SIZE;

/// The C-bit is at most this one: KVM's nested page tables have four levels and reach 48 bits.
const MAX_C_BIT: u8 = 47;

/// A piece of guest RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamRange {
    /// Its address, by which attributes and conversions name it.
    pub gpa: GpaRange,
    /// Offset of its first byte in the backings.
    pub offset: u64,
    /// Where the guest sees it.
    pub aliases: Vec<Alias>,
    /// Whether devices may use its shared pages.
    pub devices: bool,
}

/// Why there is no layout for this much RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not pages, or none.
    #[error("memory size of {} is not a whole number of {PAGE_SIZE}-byte pages", ByteSize(*.0))]
    Unaligned(u64),
    /// Too little to boot anything.
    #[error(
        "memory size of {} is too small: a guest needs at least {}, and Linux some 64 MiB", ByteSize(*.0), ByteSize(MIN_RAM)
    )]
    TooSmall(u64),
    /// Beyond what the guest can address.
    #[error(
        "memory size of {} is too large: with {aliasing} on this processor a guest can have at most {}",
        ByteSize(*size),
        ByteSize(*limit)
    )]
    TooLarge {
        /// What was asked for, in bytes.
        size: u64,
        /// The most there can be, in bytes.
        limit: u64,
        /// Which aliases there would be.
        aliasing: Aliasing,
    },
    /// A window that is no whole number of pages.
    #[error("a window of {} is not a whole number of {PAGE_SIZE}-byte pages", ByteSize(*.0))]
    WindowUnaligned(u64),
    /// A window that leaves too little to boot anything.
    #[error(
        "a window of {} leaves too little of {} of low RAM: it can have at most {}",
        ByteSize(*window),
        ByteSize(*low),
        ByteSize(*limit)
    )]
    WindowTooLarge {
        /// What was asked for, in bytes.
        window: u64,
        /// Size in bytes of the RAM that it is taken from.
        low: u64,
        /// The most it can have, in bytes.
        limit: u64,
    },
    /// Numbers that are no range.
    #[error("bad range of RAM")]
    Range(#[from] RangeError),
}

/// The layout of all guest RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLayout {
    aliasing: Aliasing,
    ranges: Vec<RamRange>,
    size: u64,
    window: u64,
    c_bit: Option<u8>,
}

impl MemoryLayout {
    /// Lays out `size` bytes of RAM for a guest whose physical addresses have `address_bits` bits.
    ///
    /// # Errors
    /// A size that is no whole number of pages, too small to boot, or too large to address.
    pub fn new(isolation: Isolation, size: u64, address_bits: u8) -> Result<Self, LayoutError> {
        Self::with_aliasing(isolation.into(), size, address_bits)
    }

    /// Lays out `size` bytes of RAM, every range with one alias that has both backings and follows the state.
    ///
    /// # Errors
    /// As [`MemoryLayout::new`].
    pub fn one_alias(size: u64, address_bits: u8) -> Result<Self, LayoutError> {
        Self::with_aliasing(Aliasing::OneForBoth, size, address_bits)
    }

    /// Lays out `size` bytes of RAM with these aliases for a guest whose physical addresses have `address_bits` bits.
    ///
    /// # Errors
    /// As [`MemoryLayout::new`].
    pub fn with_aliasing(aliasing: Aliasing, size: u64, address_bits: u8) -> Result<Self, LayoutError> {
        if !size.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::Unaligned(size));
        }
        if size < MIN_RAM {
            return Err(LayoutError::TooSmall(size));
        }
        // A C-bit is the highest address bit, so RAM and devices have one bit less. The next one has the launch window.
        let c_bit = aliasing.takes_an_address_bit().then(|| address_bits.saturating_sub(1).min(MAX_C_BIT));
        let space = 1u64 << c_bit.map_or(address_bits, |bit| bit.saturating_sub(1)).min(52);
        let limit = space.saturating_sub(HIGH_RAM_START - LOW_RAM_LIMIT);
        if size > limit {
            return Err(LayoutError::TooLarge { size, limit, aliasing });
        }
        let low = size.min(LOW_RAM_LIMIT);
        let mut pieces = match aliasing.keeps_low_memory_open() {
            false => vec![(0, low)],
            true => vec![(0, LOW_END), (LOW_END, low)],
        };
        if size > low {
            pieces.push((HIGH_RAM_START, HIGH_RAM_START + (size - low)));
        }
        let mut ranges = Vec::with_capacity(pieces.len());
        let (mut offset, mut slot) = (0, 0);
        for (start, end) in pieces {
            let gpa = GpaRange::new(start, end - start)?;
            let aliases = aliasing.aliases(start, c_bit, &mut slot);
            let devices = !aliasing.keeps_low_memory_open() || start >= LOW_END;
            ranges.push(RamRange { gpa, offset, aliases, devices });
            offset += gpa.len();
        }
        Ok(Self { aliasing, ranges, size, window: 0, c_bit })
    }

    /// Reserves the last `window` bytes of low RAM: the guest is told that they are not its own, so that nobody but the
    /// operator converts them.
    ///
    /// # Errors
    /// A window that is no whole number of pages, or leaves too little.
    pub fn reserving(self, window: u64) -> Result<Self, LayoutError> {
        if !window.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::WindowUnaligned(window));
        }
        let low = self.low_ram_end();
        let limit = low.saturating_sub(MIN_RAM);
        if window > limit {
            return Err(LayoutError::WindowTooLarge { window, low, limit });
        }
        Ok(Self { window, ..self })
    }

    /// What is reserved for the operator's conversions, if anything.
    pub fn window(&self) -> Option<GpaRange> {
        GpaRange::new(self.usable_low_end(), self.window).ok()
    }

    /// End of what the guest may use of the RAM that starts at address 0.
    pub fn usable_low_end(&self) -> u64 {
        self.low_ram_end() - self.window
    }

    /// Which aliases every range has.
    pub fn aliasing(&self) -> Aliasing {
        self.aliasing
    }

    /// All ranges, by ascending address.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// Size of RAM in bytes, and of each backing.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bit of the guest's page tables that chooses the private alias, where there is one.
    pub fn c_bit(&self) -> Option<u8> {
        self.c_bit
    }

    /// Where the guest finds what its launch code copies into private memory: everything lies there as it is to lie in low
    /// RAM. Only where nobody else can write private memory.
    pub fn launch_window(&self) -> Option<GpaRange> {
        let start = 1 << self.c_bit?.saturating_sub(1);
        GpaRange::new(start, self.low_ram_end()).ok()
    }

    /// Whether conversions are possible at all.
    pub fn converts(&self) -> bool {
        self.aliasing.converts()
    }

    /// End of the RAM that starts at address 0.
    pub fn low_ram_end(&self) -> u64 {
        self.size.min(LOW_RAM_LIMIT)
    }

    /// The parts of `range` that are RAM, each within one [`RamRange`].
    #[inline]
    pub fn split(&self, range: GpaRange) -> impl Iterator<Item = (&RamRange, GpaRange)> {
        self.ranges.iter().filter_map(move |ram| Some((ram, ram.gpa.intersection(range)?)))
    }

    /// Which alias an address of the guest's belongs to, and the address by which conversions name that byte.
    pub fn locate(&self, gpa: u64) -> Option<(&RamRange, Alias, u64)> {
        self.ranges.iter().find_map(|ram| {
            let alias = ram
                .aliases
                .iter()
                .find(|alias| gpa.checked_sub(alias.offset).is_some_and(|own| ram.gpa.contains(own)))?;
            Some((ram, *alias, gpa - alias.offset))
        })
    }
}

impl RamRange {
    /// Offset in the backings of an address in this range.
    #[inline]
    pub fn backing_offset(&self, gpa: u64) -> u64 {
        self.offset + (gpa - self.gpa.start())
    }

    /// Whether the guest reaches the shared backing whatever the state of its pages, as it does in low memory.
    #[inline]
    pub fn shared_stays_open(&self) -> bool {
        let open = AttributeRule::Fixed(PageState::Shared);
        self.aliases.iter().any(|alias| alias.shared && alias.attribute == open)
    }

    /// What a conversion of `part`, which lies in this range, sets attributes on, in order: `part` itself under each alias
    /// that follows its state. It then discards the side that the pages have left, at [`RamRange::backing_offset`]. None is
    /// an error for a part of this range.
    #[inline]
    pub fn attributes(&self, part: GpaRange) -> impl Iterator<Item = Result<GpaRange, RangeError>> {
        let following = self.aliases.iter().filter(|alias| alias.attribute == AttributeRule::Follows);
        following.map(move |alias| part.offset_by(alias.offset))
    }
}

#[cfg(test)]
mod tests;
