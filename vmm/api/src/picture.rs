//! Guest memory as a picture, in SVG: rows of cells by address, a cell filled as far as its bytes are private, shared or
//! converting, so that what is mixed shows how much of each there is.
//!
//! Colours are Okabe and Ito's, which most people can tell apart; the window is outlined. It costs the same for any map: at
//! most `CELLS` cells.

mod raster;

use std::fmt::{self, Display, Formatter, Write};

use vmm::memory::GuestRam;

pub use raster::{Cell, Raster, Region, size};

/// Colours of the states (M. Okabe, K. Ito: Color Universal Design).
const PRIVATE: &str = "#0072b2";
const SHARED: &str = "#e69f00";
const CONVERTING: &str = "#cc79a7";
const INK: &str = "#24292f";
const FAINT: &str = "#6e7781";
const PAPER: &str = "#ffffff";

/// How many cells a row has.
const COLUMNS: usize = 64;
/// About how many cells there are.
const CELLS: u64 = 1024;
/// Sizes in pixels.
const CELL: usize = 12;
const PITCH: usize = 13;
const LEFT: usize = 132;
const WIDTH: usize = LEFT + COLUMNS * PITCH + 96;
const HEAD: usize = 96;
const GAP: usize = 40;

/// The picture.
pub struct Picture {
    raster: Raster,
    c_bit: Option<u8>,
}

impl Picture {
    /// The picture of this memory.
    pub fn of(ram: &GuestRam) -> Self {
        let ranges = ram.layout().ranges().iter().map(|range| (range.gpa.start(), range.gpa.end()));
        let mut raster = Raster::new(ranges, CELLS);
        crate::routes::memory_map::all_runs(ram).for_each(|run| raster.add(&run));
        Self { raster, c_bit: ram.layout().c_bit() }
    }

    fn height(&self) -> usize {
        let rows: usize = self.raster.regions.iter().map(|region| region.cells.len().div_ceil(COLUMNS)).sum();
        HEAD + rows * PITCH + self.raster.regions.len().saturating_sub(1) * GAP + 44
    }
}

impl Display for Picture {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (height, total) = (self.height(), &self.raster.total);
        writeln!(
            f,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">"#
        )?;
        let (all, private, shared) = (size(total.bytes()), size(total.private), size(total.shared));
        writeln!(f, "<title>Guest memory</title>")?;
        writeln!(
            f,
            "<desc>{all} of RAM: {private} private, {shared} shared, {} converting.</desc>",
            size(total.converting)
        )?;
        writeln!(f, r#"<rect width="{WIDTH}" height="{height}" rx="8" fill="{PAPER}"/>"#)?;
        writeln!(f, r#"<text x="24" y="34" font-size="18" font-weight="600">Guest memory: {all}</text>"#)?;
        legend(f, &self.raster)?;
        let mut y = HEAD;
        for (i, region) in self.raster.regions.iter().enumerate() {
            if let Some(before) = i.checked_sub(1).and_then(|before| self.raster.regions.get(before)) {
                let hole = size(region.start - before.end);
                let middle = y + GAP / 2;
                writeln!(
                    f,
                    r#"<path d="M{LEFT} {middle}h{}" stroke="{FAINT}" stroke-dasharray="2 4"/>"#,
                    COLUMNS * PITCH
                )?;
                let text = format!("no RAM: {hole} for devices");
                label(f, LEFT + COLUMNS * PITCH / 2, middle - 4, "middle", &text)?;
                y += GAP;
            }
            rows(f, region, self.raster.cell_bytes, y)?;
            y += region.cells.len().div_ceil(COLUMNS) * PITCH;
        }
        if let Some(last) = self.raster.regions.last() {
            label(f, LEFT - 12, y + 10, "end", &format!("{:#x}", last.end))?;
        }
        let alias =
            self.c_bit.map(|bit| format!("; private pages are reached with address bit {bit} set")).unwrap_or_default();
        label(f, LEFT, y + 26, "start", &format!("One cell is {}{alias}.", size(self.raster.cell_bytes)))?;
        f.write_str("</svg>\n")
    }
}

fn label(f: &mut Formatter<'_>, x: usize, y: usize, anchor: &str, text: &str) -> fmt::Result {
    writeln!(f, r#"<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11" fill="{FAINT}">{text}</text>"#)
}

fn legend(f: &mut Formatter<'_>, raster: &Raster) -> fmt::Result {
    let total = &raster.total;
    let entries = [
        (PRIVATE, "private: no process can map it", total.private),
        (SHARED, "shared", total.shared),
        (CONVERTING, "converting", total.converting),
    ];
    let mut x = 24;
    for (colour, name, bytes) in entries {
        let text = format!("{name} ({})", size(bytes));
        writeln!(f, r#"<rect x="{x}" y="54" width="{CELL}" height="{CELL}" rx="2" fill="{colour}"/>"#)?;
        writeln!(f, r#"<text x="{}" y="64">{text}</text>"#, x + 20)?;
        x += 20 + text.len() * 7 + 24;
    }
    if total.window > 0 {
        let text = format!("window ({})", size(total.window));
        writeln!(
            f,
            r#"<rect x="{x}" y="54" width="{CELL}" height="{CELL}" fill="none" stroke="{INK}" stroke-width="2"/>"#
        )?;
        writeln!(f, r#"<text x="{}" y="64">{text}</text>"#, x + 20)?;
    }
    Ok(())
}

fn rows(f: &mut Formatter<'_>, region: &Region, cell_bytes: u64, top: usize) -> fmt::Result {
    let row_bytes = cell_bytes * COLUMNS as u64;
    let all = region.cells.len().div_ceil(COLUMNS);
    for (row, cells) in region.cells.chunks(COLUMNS).enumerate() {
        let y = top + row * PITCH;
        // Addresses where there is room for them; the first always.
        if row.is_multiple_of(2) || all < 2 {
            let gpa = region.start + row as u64 * row_bytes;
            writeln!(
                f,
                r#"<text x="{}" y="{}" text-anchor="end" font-family="ui-monospace, monospace" font-size="11">{gpa:#x}</text>"#,
                LEFT - 12,
                y + 10
            )?;
            let end = region.end.min(gpa + row_bytes);
            label(f, LEFT + COLUMNS * PITCH + 8, y + 10, "start", &size(end))?;
        }
        let mut at = 0;
        while let Some(cell) = cells.get(at) {
            // Neighbours of the same kind are one shape.
            let same = cells
                .get(at..)
                .unwrap_or_default()
                .iter()
                .take_while(|other| kind(other) == kind(cell) && kind(cell).is_some())
                .count()
                .max(1);
            bar(f, cell, LEFT + at * PITCH, y, same * PITCH - (PITCH - CELL))?;
            at += same;
        }
        outline(f, cells, y)?;
    }
    Ok(())
}

/// The one state of all of a cell, if there is one, and whether the cell is whole.
fn kind(cell: &Cell) -> Option<&'static str> {
    match (cell.private, cell.shared, cell.converting) {
        (_, 0, 0) => Some(PRIVATE),
        (0, _, 0) => Some(SHARED),
        (0, 0, _) => Some(CONVERTING),
        _ => None,
    }
}

/// Cells of one kind, or one of several, filled from the bottom.
fn bar(f: &mut Formatter<'_>, cell: &Cell, x: usize, y: usize, width: usize) -> fmt::Result {
    if let Some(colour) = kind(cell) {
        return writeln!(f, r#"<rect x="{x}" y="{y}" width="{width}" height="{CELL}" rx="2" fill="{colour}"/>"#);
    }
    let mut shapes = String::new();
    let height = |bytes: u64| CELL as f64 * bytes as f64 / cell.bytes().max(1) as f64;
    let mut bottom = (y + CELL) as f64;
    for (bytes, colour) in [(cell.shared, SHARED), (cell.converting, CONVERTING), (cell.private, PRIVATE)] {
        // What is there is seen, however little it is.
        let height = if bytes == 0 { 0.0 } else { height(bytes).max(1.0).min(bottom - y as f64) };
        bottom -= height;
        if height > 0.0 {
            write!(shapes, r#"<rect x="{x}" y="{bottom:.1}" width="{width}" height="{height:.1}" fill="{colour}"/>"#)?;
        }
    }
    writeln!(f, "{shapes}")
}

/// Outlines the cells of the window.
fn outline(f: &mut Formatter<'_>, cells: &[Cell], y: usize) -> fmt::Result {
    let Some(first) = cells.iter().position(|cell| cell.window > 0) else { return Ok(()) };
    let count = cells.iter().skip(first).take_while(|cell| cell.window > 0).count();
    let (x, width) = (LEFT + first * PITCH, count * PITCH - 1);
    writeln!(
        f,
        r#"<rect x="{x}" y="{y}" width="{width}" height="{CELL}" fill="none" stroke="{INK}" stroke-width="1.5"/>"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MemoryRun, State};

    const GIB: u64 = 1 << 30;

    fn picture() -> Picture {
        let mut raster = Raster::new([(0, 3 * GIB), (4 * GIB, 5 * GIB)], CELLS);
        let runs = [
            (0, 0x1000, State::Shared, false),
            (0x1000, 3 * GIB - 0x1000 - (64 << 20), State::Private, false),
            (3 * GIB - (64 << 20), 64 << 20, State::Shared, true),
            (4 * GIB, GIB, State::Converting, false),
        ];
        for (gpa, size, state, window) in runs {
            raster.add(&MemoryRun { gpa, size, state, tag: None, window });
        }
        Picture { raster, c_bit: Some(47) }
    }

    #[test]
    fn shows_states_hole_window_and_sizes() {
        let text = picture().to_string();
        for part in [
            PRIVATE,
            SHARED,
            CONVERTING,
            "0x100000000",
            "no RAM: 1 GiB",
            "window (64 MiB)",
            "One cell is 4 MiB",
            "bit 47",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(text.len() < 100_000, "{}", text.len());
    }

    #[test]
    fn each_element_is_closed_and_inside() {
        let picture = picture();
        let text = picture.to_string();
        let count = |part| text.matches(part).count();
        assert_eq!(count("<text"), count("</text>"));
        assert_eq!((count("<svg"), count("</svg>")), (1, 1));
        assert!(!text.contains("NaN"));
        for rect in text.split("<rect ").skip(1) {
            let rect = format!(" {}", rect.split('>').next().unwrap());
            let number = |name: &str| -> f64 {
                let (_, rest) = rect.split_once(&format!(" {name}=\"")).unwrap_or(("", "0\""));
                rest.split('"').next().unwrap().parse().unwrap()
            };
            assert!(number("x") + number("width") <= WIDTH as f64, "{rect}");
            assert!(number("y") + number("height") <= picture.height() as f64 + 0.1, "{rect}");
        }
    }
}
