//! The layout of guest RAM: which ranges it has, which aliases each range has, and what a conversion does to them.
//!
//! An isolation owns the layout. It is data: the conversion engine walks it and knows no isolation by name.
//!
//! * A [`RamRange`] is a piece of RAM at the addresses by which attributes and conversions name it. It has bytes in up to
//!   two backings, shared and private, at the same offset in each.
//! * An [`Alias`] is a place where the guest sees the range: one memory slot. Its [`AttributeRule`] says what KVM's
//!   attribute is there: fixed for good, or following the state of the page.
//! * A conversion is a list of [`Step`]s: set the attribute on each alias that follows, then discard the side that the
//!   page has left.
//!
//! | isolation | aliases of a range | attribute |
//! |---|---|---|
//! | `none` | one: shared | fixed, shared |
//! | `software` | at 0: shared only; at C (the C-bit): private only | at 0: follows, so that a touch of a private page exits; at C: fixed, private |
//!
//! With `software`, the private alias of a shared page stays private: a stray touch there lands in private memory, never
//! in what the VMM maps. That costs one attribute call for each conversion, and a guest that makes such touches holds
//! the pages it so touches twice, at worst.
//!
//! Below 640 KiB the shared alias of `software` is always open, since processors start there, and is never given to
//! devices.

use hypervisor::{GpaRange, PAGE_SIZE, PageState, RangeError};

use super::Isolation;
use super::map::{HIGH_RAM_START, LOW_END, LOW_RAM_LIMIT};

/// The least RAM that a layout is made for, in bytes: the first MiB and one page.
const MIN_RAM: u64 = 0x10_0000 + PAGE_SIZE;

/// The C-bit is at most this one: KVM's nested page tables have four levels and reach 48 bits.
const MAX_C_BIT: u8 = 47;

/// What KVM's attribute is on the pages of an alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttributeRule {
    /// This, whatever the state of the page.
    Fixed(PageState),
    /// The state of the page.
    Follows,
}

/// A place where the guest sees a range of RAM: one memory slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// Slot number.
    pub slot: u32,
    /// How far above the range's own address it lies, in bytes.
    pub offset: u64,
    /// Whether the shared backing is behind it.
    pub shared: bool,
    /// Whether the private backing is behind it.
    pub private: bool,
    /// What the attribute is there.
    pub attribute: AttributeRule,
}

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

/// One primitive operation of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Set the attribute on an alias. Undone by setting the other one.
    SetAttribute {
        /// Guest addresses of the alias.
        range: GpaRange,
        /// The new attribute.
        state: PageState,
    },
    /// Give back the memory of one side. Comes last, and can't be undone.
    Discard {
        /// The side.
        side: PageState,
        /// First byte in the backing.
        offset: u64,
        /// Size in bytes.
        size: u64,
    },
}

/// Why there is no layout for this much RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not pages, or none.
    #[error("memory size of {0} bytes is not a whole number of {PAGE_SIZE}-byte pages")]
    Unaligned(u64),
    /// Too little to boot anything.
    #[error("memory size of {0} bytes is too small: a guest needs at least {MIN_RAM} bytes")]
    TooSmall(u64),
    /// Beyond what the guest can address.
    #[error(
        "memory size of {size} bytes is too large: with isolation={isolation} on this processor a guest can have at most \
         {limit} bytes"
    )]
    TooLarge {
        /// What was asked for, in bytes.
        size: u64,
        /// The most there can be, in bytes.
        limit: u64,
        /// The isolation.
        isolation: Isolation,
    },
    /// Numbers that are no range.
    #[error("bad range of RAM")]
    Range(#[from] RangeError),
}

/// The layout of all guest RAM under one isolation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLayout {
    isolation: Isolation,
    ranges: Vec<RamRange>,
    size: u64,
    c_bit: Option<u8>,
}

impl MemoryLayout {
    /// Lays out `size` bytes of RAM for a guest whose physical addresses have `address_bits` bits.
    ///
    /// # Errors
    /// A size that is no whole number of pages, too small to boot, or too large to address.
    pub fn new(isolation: Isolation, size: u64, address_bits: u8) -> Result<Self, LayoutError> {
        if !size.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::Unaligned(size));
        }
        if size < MIN_RAM {
            return Err(LayoutError::TooSmall(size));
        }
        // The C-bit is the highest address bit, so RAM and devices have one bit less.
        let c_bit = (isolation == Isolation::Software).then(|| address_bits.saturating_sub(1).min(MAX_C_BIT));
        let space = 1u64 << c_bit.unwrap_or(address_bits).min(52);
        let limit = space.saturating_sub(HIGH_RAM_START - LOW_RAM_LIMIT);
        if size > limit {
            return Err(LayoutError::TooLarge { size, limit, isolation });
        }
        let low = size.min(LOW_RAM_LIMIT);
        let mut pieces = match isolation {
            Isolation::None => vec![(0, low)],
            Isolation::Software => vec![(0, LOW_END), (LOW_END, low)],
        };
        if size > low {
            pieces.push((HIGH_RAM_START, HIGH_RAM_START + (size - low)));
        }
        let mut ranges = Vec::with_capacity(pieces.len());
        let (mut offset, mut slot) = (0, 0);
        for (start, end) in pieces {
            let gpa = GpaRange::new(start, end - start)?;
            let aliases = aliases(isolation, c_bit, start, &mut slot);
            let devices = isolation == Isolation::None || start >= LOW_END;
            ranges.push(RamRange { gpa, offset, aliases, devices });
            offset += gpa.len();
        }
        Ok(Self { isolation, ranges, size, c_bit })
    }

    /// The isolation that this is the layout of.
    pub fn isolation(&self) -> Isolation {
        self.isolation
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

    /// Whether conversions are possible at all.
    pub fn converts(&self) -> bool {
        self.isolation.is_unmappable()
    }

    /// End of the RAM that starts at address 0.
    pub fn low_ram_end(&self) -> u64 {
        self.size.min(LOW_RAM_LIMIT)
    }

    /// The parts of `range` that are RAM, each within one [`RamRange`].
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
    pub fn backing_offset(&self, gpa: u64) -> u64 {
        self.offset + (gpa - self.gpa.start())
    }

    /// What a conversion of `part`, which lies in this range, to the state `to` consists of, in order.
    ///
    /// # Errors
    /// None for a part of this range.
    pub fn conversion(&self, part: GpaRange, to: PageState) -> Result<Vec<Step>, RangeError> {
        let mut steps = Vec::with_capacity(self.aliases.len() + 1);
        for alias in &self.aliases {
            if alias.attribute == AttributeRule::Follows {
                steps.push(Step::SetAttribute { range: part.offset_by(alias.offset)?, state: to });
            }
        }
        steps.push(Step::Discard { side: to.other(), offset: self.backing_offset(part.start()), size: part.len() });
        Ok(steps)
    }
}

fn aliases(isolation: Isolation, c_bit: Option<u8>, start: u64, slot: &mut u32) -> Vec<Alias> {
    let mut next = || {
        let number = *slot;
        *slot += 1;
        number
    };
    let shared = |slot, attribute| Alias { slot, offset: 0, shared: true, private: false, attribute };
    match (isolation, c_bit) {
        (Isolation::Software, Some(c_bit)) => {
            let open = start < LOW_END;
            let rule = if open { AttributeRule::Fixed(PageState::Shared) } else { AttributeRule::Follows };
            vec![
                shared(next(), rule),
                Alias {
                    slot: next(),
                    offset: 1 << c_bit,
                    shared: false,
                    private: true,
                    attribute: AttributeRule::Fixed(PageState::Private),
                },
            ]
        }
        _ => vec![shared(next(), AttributeRule::Fixed(PageState::Shared))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn software(size: u64) -> MemoryLayout {
        MemoryLayout::new(Isolation::Software, size, 48).unwrap()
    }

    #[test]
    fn bad_sizes_are_errors() {
        for isolation in Isolation::ALL {
            let new = |size| MemoryLayout::new(isolation, size, 48);
            assert_eq!(new(1), Err(LayoutError::Unaligned(1)));
            assert_eq!(new(0), Err(LayoutError::TooSmall(0)));
            assert_eq!(new(PAGE_SIZE), Err(LayoutError::TooSmall(PAGE_SIZE)));
            assert!(matches!(new(1 << 48), Err(LayoutError::TooLarge { .. })));
            assert!(matches!(new(!(PAGE_SIZE - 1)), Err(LayoutError::TooLarge { .. })));
            assert!(new(512 * MIB).is_ok());
        }
    }

    #[test]
    fn ranges_tile_both_backings_and_never_overlap() {
        for size in [2 * MIB, 512 * MIB, 3 * GIB, 3 * GIB + PAGE_SIZE, 64 * GIB] {
            for isolation in Isolation::ALL {
                let layout = MemoryLayout::new(isolation, size, 48).unwrap();
                let mut offset = 0;
                for ram in layout.ranges() {
                    assert_eq!(ram.offset, offset);
                    offset += ram.gpa.len();
                }
                assert_eq!(offset, size);
                let places: Vec<_> = layout
                    .ranges()
                    .iter()
                    .flat_map(|ram| ram.aliases.iter().map(|alias| ram.gpa.offset_by(alias.offset).unwrap()))
                    .collect();
                for (i, left) in places.iter().enumerate() {
                    assert!(places[i + 1..].iter().all(|right| left.intersection(*right).is_none()));
                }
            }
        }
    }

    #[test]
    fn the_private_alias_never_has_the_shared_backing_behind_it() {
        for ram in software(4 * GIB).ranges() {
            for alias in &ram.aliases {
                assert!(!(alias.private && alias.shared));
                if alias.private {
                    assert_eq!(alias.attribute, AttributeRule::Fixed(PageState::Private));
                }
            }
        }
    }

    #[test]
    fn a_conversion_sets_the_attribute_first_and_discards_last() {
        let layout = software(512 * MIB);
        let part = GpaRange::new(MIB, 2 * PAGE_SIZE).unwrap();
        let (ram, part) = layout.split(part).next().unwrap();
        assert_eq!(
            ram.conversion(part, PageState::Private).unwrap(),
            [
                Step::SetAttribute { range: part, state: PageState::Private },
                Step::Discard { side: PageState::Shared, offset: MIB, size: 2 * PAGE_SIZE },
            ]
        );
    }

    #[test]
    fn addresses_are_found_by_either_alias() {
        let layout = software(4 * GIB);
        for gpa in [0, LOW_END - 1, LOW_END, 2 * GIB, HIGH_RAM_START, HIGH_RAM_START + GIB - 1] {
            let (_, alias, own) = layout.locate(gpa).unwrap();
            assert!(alias.shared && own == gpa);
            let (_, alias, own) = layout.locate(gpa | 1 << 47).unwrap();
            assert!(alias.private && own == gpa);
        }
        for gpa in [LOW_RAM_LIMIT, HIGH_RAM_START + GIB, 1 << 47 | LOW_RAM_LIMIT, u64::MAX] {
            assert!(layout.locate(gpa).is_none(), "{gpa:#x}");
        }
    }

    #[test]
    fn a_range_over_several_pieces_and_holes_is_split_into_all_of_them() {
        let layout = software(4 * GIB);
        let all = GpaRange::new(0, 1 << 46).unwrap();
        let parts: Vec<_> = layout.split(all).map(|(_, part)| part).collect();
        assert_eq!(parts, layout.ranges().iter().map(|ram| ram.gpa).collect::<Vec<_>>());
    }
}
