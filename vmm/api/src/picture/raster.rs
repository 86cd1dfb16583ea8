//! Memory as cells: each stands for as many bytes as it must for all of RAM to fit, and knows how many of them are in
//! which state. Adding a run costs as many steps as it touches cells.

use hypervisor::PAGE_SIZE;

use crate::types::{MemoryRun, State};

/// Bytes of one cell, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cell {
    /// Private.
    pub private: u64,
    /// Shared.
    pub shared: u64,
    /// On the way to private.
    pub converting: u64,
    /// In the window, whatever their state.
    pub window: u64,
}

impl Cell {
    /// Bytes of RAM in it.
    pub fn bytes(&self) -> u64 {
        self.private + self.shared + self.converting
    }
}

/// RAM without a hole in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Its cells, by address.
    pub cells: Vec<Cell>,
}

/// All RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raster {
    /// Bytes that a cell stands for.
    pub cell_bytes: u64,
    /// Regions, by address.
    pub regions: Vec<Region>,
    /// All of it.
    pub total: Cell,
}

impl Raster {
    /// A raster of these ranges, which are in order, in about `cells` cells. Neighbours become one region.
    pub fn new(ranges: impl IntoIterator<Item = (u64, u64)>, cells: u64) -> Self {
        let mut regions: Vec<Region> = Vec::new();
        for (start, end) in ranges {
            match regions.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => regions.push(Region { start, end, cells: vec![] }),
            }
        }
        let bytes: u64 = regions.iter().map(|region| region.end.saturating_sub(region.start)).sum();
        let cell_bytes = bytes.div_ceil(cells.max(1)).max(PAGE_SIZE).next_power_of_two();
        for region in &mut regions {
            let count = region.end.saturating_sub(region.start).div_ceil(cell_bytes);
            region.cells = vec![Cell::default(); usize::try_from(count).unwrap_or(0)];
        }
        Self { cell_bytes, regions, total: Cell::default() }
    }

    /// Adds a run.
    pub fn add(&mut self, run: &MemoryRun) {
        let end = run.gpa.saturating_add(run.size);
        for region in &mut self.regions {
            let mut at = run.gpa.max(region.start);
            let end = end.min(region.end);
            while at < end {
                let index = (at - region.start) / self.cell_bytes;
                let next = end.min(region.start + (index + 1) * self.cell_bytes);
                let cell = usize::try_from(index).ok().and_then(|index| region.cells.get_mut(index));
                for cell in cell.into_iter().chain([&mut self.total]) {
                    match run.state {
                        State::Private => cell.private += next - at,
                        State::Shared => cell.shared += next - at,
                        State::Converting => cell.converting += next - at,
                    }
                    if run.window {
                        cell.window += next - at;
                    }
                }
                at = next;
            }
        }
    }
}

/// A size as people write it.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| bytes >> shift != 0) else {
        return format!("{bytes} B");
    };
    match bytes % (1 << shift) {
        0 => format!("{} {unit}", bytes >> shift),
        _ => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_cell() {
        let mut raster = Raster::new([(0, 0xa0000), (0xa0000, 0x30_0000), (1 << 32, (1 << 32) + 0x1000)], 16);
        assert_eq!((raster.cell_bytes, raster.regions.len()), (0x4_0000, 2));
        let run = |gpa, size, state| MemoryRun { gpa, size, state, tag: None, window: gpa == 0x1000 };
        raster.add(&run(0, 0x1000, State::Shared));
        raster.add(&run(0x1000, 0x4_0000, State::Converting));
        raster.add(&run(0x4_1000, (1 << 32) - 0x4_1000 + 0x1000, State::Private));
        let first = &raster.regions[0].cells;
        assert_eq!(first[0], Cell { private: 0, shared: 0x1000, converting: 0x3_f000, window: 0x3_f000 });
        assert_eq!(first[1], Cell { private: 0x3_f000, shared: 0, converting: 0x1000, window: 0x1000 });
        assert_eq!(raster.total.bytes(), 0x30_1000);
        let cells: u64 = raster.regions.iter().flat_map(|region| &region.cells).map(Cell::bytes).sum();
        assert_eq!(cells, raster.total.bytes());
    }

    #[test]
    fn sizes_are_short() {
        let sizes = [(0, "0 B"), (512 << 20, "512 MiB"), (1536 << 20, "1.5 GiB"), (4096, "4 KiB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
    }
}
