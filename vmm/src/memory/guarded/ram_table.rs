//! Where guest RAM lies: from guest addresses to offsets in the backings.

use hypervisor::{GpaRange, PAGE_SIZE};

use super::pages::PageRange;
use super::sync::Arc;

/// One range of guest RAM, without holes, in one piece of the backings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamPiece {
    /// Its guest addresses.
    pub gpa: GpaRange,
    /// Offset of its first byte in the backings.
    pub offset: u64,
    /// Whether devices may use its shared pages.
    pub devices: bool,
}

/// Why pieces are no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RamTableError {
    /// Two of them have an address in common.
    #[error("ranges {0} and {1} of guest RAM overlap")]
    Overlap(GpaRange, GpaRange),
    /// Two of them have a page of the backings in common.
    #[error("ranges {0} and {1} of guest RAM have memory in common")]
    Shared(GpaRange, GpaRange),
    /// One of them is not within the backings, or not on the borders of pages.
    #[error("guest RAM {gpa} at offset {offset:#x} is not on pages within {size:#x} bytes of backing")]
    OutsideBacking {
        /// Its guest addresses.
        gpa: GpaRange,
        /// Its offset.
        offset: u64,
        /// Size of the backings.
        size: u64,
    },
}

/// A piece as devices look it up: plain numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    start: u64,
    size: u64,
    offset: u64,
}

impl Entry {
    /// The offset in the backings of an address in this piece, and how many bytes of the piece are there from it on.
    #[inline(always)]
    fn find(&self, gpa: u64) -> Option<(u64, u64)> {
        let within = gpa.wrapping_sub(self.start);
        if within < self.size { Some((self.offset + within, self.size - within)) } else { None }
    }
}

/// How many entries are found without a search.
const FEW: usize = 4;

/// RAM by address, neighbours merged.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    /// The first few, beside each other; those that are not there are empty.
    few: [Entry; FEW],
    /// Where the second to the last of these begin; the end of the address space for those that are not there.
    starts: [u64; FEW - 1],
    /// The others.
    more: Arc<[Entry]>,
}

impl Entries {
    /// The entries of these pieces, which are in order.
    fn new<'a>(pieces: impl Iterator<Item = &'a RamPiece>) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        for RamPiece { gpa, offset, .. } in pieces.copied() {
            match entries.last_mut() {
                Some(last) if last.start + last.size == gpa.start() && last.offset + last.size == offset => {
                    last.size += gpa.len();
                }
                _ => entries.push(Entry { start: gpa.start(), size: gpa.len(), offset }),
            }
        }
        let more = entries.split_off(entries.len().min(FEW)).into();
        let few = std::array::from_fn(|i| entries.get(i).copied().unwrap_or_default());
        let starts = std::array::from_fn(|i| entries.get(i + 1).map_or(u64::MAX, |entry| entry.start));
        Self { few, starts, more }
    }

    /// The offset in the backings of an address, and how many bytes from there on are in one piece.
    #[inline(always)]
    pub(super) fn find(&self, gpa: u64) -> Option<(u64, u64)> {
        // Comparisons are counted, not branched on: processors can't predict the addresses that devices are given.
        let index: usize = self.starts.iter().map(|start| usize::from(gpa >= *start)).sum();
        match self.few[index].find(gpa) {
            None if !self.more.is_empty() => self.search(gpa),
            found => found,
        }
    }

    #[cold]
    #[inline(never)]
    fn search(&self, gpa: u64) -> Option<(u64, u64)> {
        let behind = self.more.partition_point(|entry| entry.start <= gpa);
        self.more.get(behind.checked_sub(1)?)?.find(gpa)
    }
}

/// All of guest RAM. It does not change: what comes and goes are the pages, by their state.
#[derive(Debug, Clone)]
pub struct RamTable {
    all: Entries,
    /// What devices may use.
    devices: Entries,
    pieces: Arc<[RamPiece]>,
    size: u64,
}

impl RamTable {
    /// The table of these pieces, in any order, of backings of `size` bytes.
    ///
    /// # Errors
    /// Pieces that overlap each other or lie outside of the backings.
    pub fn new(pieces: impl IntoIterator<Item = RamPiece>, size: u64) -> Result<Self, RamTableError> {
        let mut pieces: Vec<RamPiece> = pieces.into_iter().collect();
        for RamPiece { gpa, offset, .. } in pieces.iter().copied() {
            let inside =
                PageRange::touched(offset, gpa.len()).is_some_and(|pages| pages.offset() + pages.bytes() <= size);
            if !inside || !offset.is_multiple_of(PAGE_SIZE) {
                return Err(RamTableError::OutsideBacking { gpa, offset, size });
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.offset);
        for pair in pieces.windows(2) {
            if pair[0].offset + pair[0].gpa.len() > pair[1].offset {
                return Err(RamTableError::Shared(pair[0].gpa, pair[1].gpa));
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.gpa.start());
        for pair in pieces.windows(2) {
            if pair[0].gpa.intersection(pair[1].gpa).is_some() {
                return Err(RamTableError::Overlap(pair[0].gpa, pair[1].gpa));
            }
        }
        let all = Entries::new(pieces.iter());
        let devices = Entries::new(pieces.iter().filter(|piece| piece.devices));
        Ok(Self { all, devices, pieces: pieces.into(), size })
    }

    /// All pieces, by address.
    pub fn pieces(&self) -> &[RamPiece] {
        &self.pieces
    }

    /// Size of the backings in bytes: all offsets are within.
    pub fn backing_size(&self) -> u64 {
        self.size
    }

    /// The offset in the backings of an address; `None` where there is no RAM.
    #[inline]
    pub fn offset_of(&self, gpa: u64) -> Option<u64> {
        self.all.find(gpa).map(|(offset, _)| offset)
    }

    /// The parts of a range that are RAM, in order, each in one piece: its addresses and its pages.
    pub fn split(&self, range: GpaRange) -> impl Iterator<Item = (GpaRange, PageRange)> {
        let first = self.pieces.partition_point(|piece| piece.gpa.end() <= range.start());
        let pieces = self.pieces[first..].iter().take_while(move |piece| piece.gpa.start() < range.end());
        pieces.filter_map(move |piece| {
            let part = piece.gpa.intersection(range)?;
            let offset = piece.offset + (part.start() - piece.gpa.start());
            Some((part, PageRange::touched(offset, part.len())?))
        })
    }

    /// What devices look up.
    pub(super) fn for_devices(&self) -> &Entries {
        &self.devices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(gpa: u64, pages: u64, offset: u64, devices: bool) -> RamPiece {
        let gpa = GpaRange::new(gpa * PAGE_SIZE, pages * PAGE_SIZE).unwrap();
        RamPiece { gpa, offset: offset * PAGE_SIZE, devices }
    }

    #[test]
    fn bad_pieces_are_errors() {
        let size = 16 * PAGE_SIZE;
        let table = |pieces: &[RamPiece]| RamTable::new(pieces.iter().copied(), size);
        assert!(matches!(table(&[piece(0, 4, 0, true), piece(3, 4, 4, true)]), Err(RamTableError::Overlap(..))));
        assert!(matches!(table(&[piece(0, 4, 13, true)]), Err(RamTableError::OutsideBacking { .. })));
        assert!(matches!(
            table(&[RamPiece { offset: 8, ..piece(0, 4, 0, true) }]),
            Err(RamTableError::OutsideBacking { .. })
        ));
        let far = RamPiece { offset: u64::MAX - PAGE_SIZE + 1, ..piece(0, 4, 0, true) };
        assert!(table(&[far]).is_err());
        assert!(matches!(table(&[piece(0, 4, 0, true), piece(8, 4, 3, true)]), Err(RamTableError::Shared(..))));
        assert!(table(&[piece(8, 4, 4, true), piece(0, 4, 0, false)]).is_ok());
    }

    proptest! {
        #[test]
        fn each_byte_is_found_where_its_piece_lies(
            lengths in prop::collection::vec((0u64..3, 1u64..4, any::<bool>()), 1..9),
            gpa in 0u64..60 * PAGE_SIZE,
        ) {
            let (mut at, mut offset, mut pieces) = (0, 0, Vec::new());
            for (hole, pages, devices) in lengths {
                pieces.push(piece(at + hole, pages, offset, devices));
                at += hole + pages;
                offset += pages;
            }
            let table = RamTable::new(pieces.iter().rev().copied(), offset * PAGE_SIZE).unwrap();
            let owner = pieces.iter().find(|piece| piece.gpa.contains(gpa));
            prop_assert_eq!(table.offset_of(gpa), owner.map(|piece| piece.offset + (gpa - piece.gpa.start())));
            let found = table.for_devices().find(gpa);
            match owner.filter(|piece| piece.devices) {
                None => prop_assert_eq!(found, None),
                Some(piece) => {
                    let (offset, rest) = found.unwrap();
                    prop_assert_eq!(offset, piece.offset + (gpa - piece.gpa.start()));
                    prop_assert!(rest >= piece.gpa.end() - gpa);
                    // The rest is RAM for devices, in one piece of guest addresses and of the backings.
                    prop_assert_eq!(table.for_devices().find(gpa + rest - 1), Some((offset + rest - 1, 1)));
                }
            }
        }
    }
}
