//! The attribute map by guest address: where RAM lies, and the state of its pages.
//!
//! The map itself counts pages from the start of the backings ([`StatePlane`]). Here it is asked by guest address, across
//! slots and holes. Readers never wait; a look-up costs a few comparisons more than one by page.

use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use super::device_memory::SizeMismatch;
use super::ram_table::RamTable;
use super::state_plane::{PlaneStatistics, StatePlane};
use super::sync::Arc;

/// A run of RAM of one kind, by guest address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpaRun {
    /// Its addresses.
    pub range: GpaRange,
    /// The state of its pages.
    pub state: PageState,
    /// Whether a conversion to private has begun: devices are refused although the pages are shared.
    pub converting: bool,
}

/// The state of every page of RAM, by guest address.
#[derive(Debug, Clone)]
pub struct AttributeMap {
    table: RamTable,
    plane: Arc<StatePlane>,
}

impl AttributeMap {
    /// The states in `plane` of the RAM in `table`.
    ///
    /// # Errors
    /// A table of backings that are not of the size of the map.
    pub fn new(table: RamTable, plane: Arc<StatePlane>) -> Result<Self, SizeMismatch> {
        let (map, table_size) = (plane.all().bytes(), table.backing_size());
        if map != table_size {
            return Err(SizeMismatch { backing: table_size, map, table: table_size });
        }
        Ok(Self { table, plane })
    }

    /// Where RAM lies.
    pub fn table(&self) -> &RamTable {
        &self.table
    }

    /// The states, by page.
    pub fn plane(&self) -> &Arc<StatePlane> {
        &self.plane
    }

    /// Whether host user space can map the page that holds this address. True unless the page is private, so also where
    /// there is no RAM.
    #[inline]
    pub fn is_gpa_user_mappable(&self, gpa: u64) -> bool {
        self.state(gpa) != Some(PageState::Private)
    }

    /// The state of the page that holds this address; `None` where there is no RAM.
    #[inline]
    pub fn state(&self, gpa: u64) -> Option<PageState> {
        self.plane.state(self.table.offset_of(gpa)? / PAGE_SIZE)
    }

    /// The runs of RAM in a range, in order and as long as they can be. What is no RAM is left out.
    ///
    /// Conversions may go on while the runs are read. Each page is then reported as it was at some moment of that time.
    pub fn runs(&self, range: GpaRange) -> impl Iterator<Item = GpaRun> {
        let mut parts = self.table.split(range).flat_map(|(gpa, pages)| {
            let runs = self.plane.runs(pages);
            runs.filter_map(move |run| {
                let start = gpa.start() + (run.pages.offset() - pages.offset());
                let range = GpaRange::new(start, run.pages.bytes()).ok()?;
                Some(GpaRun { range, state: run.state, converting: run.converting })
            })
        });
        let mut next = parts.next();
        std::iter::from_fn(move || {
            let mut run = next.take()?;
            next = parts.next();
            while let Some(more) = next
                && (more.range.start(), more.state, more.converting) == (run.range.end(), run.state, run.converting)
                && let Ok(longer) = GpaRange::new(run.range.start(), run.range.len() + more.range.len())
            {
                run.range = longer;
                next = parts.next();
            }
            Some(run)
        })
    }

    /// How much of RAM is in which state. Costs the same for any map.
    pub fn statistics(&self) -> PlaneStatistics {
        self.plane.statistics()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::prelude::*;

    use super::super::guards::Guards;
    use super::super::pages::PageRange;
    use super::super::quiesce::WaitForGuards;
    use super::super::ram_table::RamPiece;
    use super::*;

    /// Pieces with holes between them, or none, in another order in the backings than by address.
    fn pieces() -> impl Strategy<Value = Vec<RamPiece>> {
        let lengths = prop::collection::vec((0u64..3, 1u64..40, any::<bool>()), 1..9);
        lengths.prop_shuffle().prop_flat_map(|lengths| {
            let order: Vec<usize> = (0..lengths.len()).collect();
            (Just(lengths), Just(order).prop_shuffle()).prop_map(|(lengths, order)| {
                let mut offsets = vec![0; lengths.len()];
                let mut offset = 0;
                for index in order {
                    offsets[index] = offset;
                    offset += lengths[index].1 * PAGE_SIZE;
                }
                let mut page = 0;
                let places = lengths.iter().zip(offsets).map(|((hole, count, devices), offset)| {
                    let gpa = GpaRange::new((page + hole) * PAGE_SIZE, count * PAGE_SIZE).unwrap();
                    page += hole + count;
                    RamPiece { gpa, offset, devices: *devices }
                });
                places.collect()
            })
        })
    }

    /// What is said of a page: `None` where there is no RAM, else its state and whether it is converting.
    type Page = Option<(PageState, bool)>;

    proptest! {
        #[test]
        fn agrees_with_a_list_of_pages(
            pieces in pieces(),
            changes in prop::collection::vec((0u64..300, 1u64..60, any::<bool>()), 0..6),
            (first, count) in (0u64..400, 1u64..400),
        ) {
            let size = pieces.iter().map(|piece| piece.gpa.len()).sum();
            let (plane, mut writer) = StatePlane::new(size, 8).unwrap();
            let map = AttributeMap::new(RamTable::new(pieces.clone(), size).unwrap(), plane.clone()).unwrap();
            let guards = Guards::new(plane.clone());
            let mut in_flight = Vec::new();
            for (first, count, commit) in changes {
                let Ok(revoked) = writer.revoke(PageRange::new(first, first + count).unwrap()) else { continue };
                if commit {
                    let quiesced = revoked.quiesce(&WaitForGuards, &guards, &mut |_| ControlFlow::Continue(()));
                    writer.commit(quiesced.unwrap());
                } else {
                    in_flight.push(revoked);
                }
            }
            let page_at = |gpa: u64| -> Page {
                let piece = pieces.iter().find(|piece| piece.gpa.contains(gpa))?;
                let page = (piece.offset + (gpa - piece.gpa.start())) / PAGE_SIZE;
                Some((plane.state(page)?, in_flight.iter().any(|revoked| revoked.range().contains(page))))
            };

            let asked = GpaRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap();
            let mut runs: Vec<(GpaRange, PageState, bool)> = Vec::new();
            for gpa in (asked.start()..asked.end()).step_by(PAGE_SIZE as usize) {
                let page = page_at(gpa);
                let state = page.map(|(state, _)| state);
                prop_assert_eq!(map.state(gpa + 17), state);
                prop_assert_eq!(map.is_gpa_user_mappable(gpa + 4095), state != Some(PageState::Private));
                let Some((state, converting)) = page else { continue };
                let one = GpaRange::page_of(gpa).unwrap();
                match runs.last_mut() {
                    Some(run) if run.0.end() == gpa && (run.1, run.2) == (state, converting) => {
                        run.0 = GpaRange::new(run.0.start(), run.0.len() + PAGE_SIZE).unwrap();
                    }
                    _ => runs.push((one, state, converting)),
                }
            }
            let found: Vec<_> = map.runs(asked).map(|run| (run.range, run.state, run.converting)).collect();
            prop_assert_eq!(found, runs);

            let parts: Vec<_> = map.table().split(asked).collect();
            let expected: Vec<_> = pieces.iter().filter_map(|piece| {
                let part = piece.gpa.intersection(asked)?;
                Some((part, PageRange::touched(piece.offset + part.start() - piece.gpa.start(), part.len()).unwrap()))
            }).collect();
            prop_assert_eq!(parts, expected);
            in_flight.into_iter().for_each(|revoked| writer.restore(revoked));
        }
    }

    #[test]
    fn where_there_is_no_ram_pages_are_user_mappable() {
        let (plane, _writer) = StatePlane::new(PAGE_SIZE, 1).unwrap();
        let gpa = GpaRange::new(PAGE_SIZE, PAGE_SIZE).unwrap();
        let table = RamTable::new([RamPiece { gpa, offset: 0, devices: true }], PAGE_SIZE).unwrap();
        let map = AttributeMap::new(table.clone(), plane).unwrap();
        for gpa in [0, PAGE_SIZE - 1, 2 * PAGE_SIZE, 1 << 52, u64::MAX] {
            assert!(map.is_gpa_user_mappable(gpa));
            assert_eq!(map.state(gpa), None);
        }
        let (larger, _writer) = StatePlane::new(2 * PAGE_SIZE, 1).unwrap();
        assert!(AttributeMap::new(table, larger).is_err());
    }
}
