//! What of private memory Linux touches until its init, all of it and whatever else the guest does.
//!
//! Private memory has small pages only, and a guest that faults in each of them takes twice as long to boot. So this is what is
//! worth populating for it. A guest that does without holds that memory all the same, so there is no more in it than what
//! Linux was seen to touch.
//!
//! The order is that in which Linux comes by: a thread that populates it is ahead of a guest that runs meanwhile.

use hypervisor::{GpaRange, PAGE_SIZE};

/// How much memory Linux takes at its start for bounce buffers, if it believes that its memory is encrypted: 6 % of RAM within
/// these bounds (Linux `arch/x86/mm/mem_encrypt.c`, `mem_encrypt_setup_arch`). It fills them with zeros before it shares them.
const BOUNCE_PERCENT: u64 = 6;
const LEAST_BOUNCE: u64 = 64 << 20;
const MOST_BOUNCE: u64 = 1 << 30;
/// What else it takes of the end of RAM, before that: 64 bytes to describe each page, and some tables.
const PAGES_PER_DESCRIPTOR_PAGE: u64 = 64;
const TABLES: u64 = 4 << 20;
/// Where its own allocations are until its init: they begin at the kernel's end. Debian's takes 10.5 MiB, spread over these.
const ALLOCATIONS: u64 = 14 << 20;
/// Holes up to this size between parts of the kernel are touched as well: Linux overwrites what it gives to its allocator.
const HOLE: u64 = 2 << 20;

/// What RAM has, and where things are in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Size of all RAM.
    pub(super) ram: u64,
    /// Whether some of it lies above 4 GiB.
    pub(super) has_high: bool,
    /// End of the RAM below 4 GiB that the guest may use.
    pub(super) low_end: u64,
    /// Address and size of the initramfs; the size may be 0.
    pub(super) initramfs: (u64, u64),
}

/// Whole pages that are touched, the first first. `small` are the bytes below the kernel, `segments` is the kernel, by
/// ascending address; each is an address and a size.
pub(super) fn touched(
    small: impl Iterator<Item = (u64, u64)>,
    segments: impl Iterator<Item = (u64, u64)>,
    place: Place,
) -> Vec<GpaRange> {
    let mut kernel: Vec<(u64, u64)> = Vec::new();
    for (start, size) in segments {
        match kernel.last_mut() {
            Some((first, end)) if start.saturating_sub(*end) <= HOLE => *end = (*end).max(start + size).max(*first),
            _ => kernel.push((start, start + size)),
        }
    }
    let kernel_end = kernel.last().map_or(0, |(_, end)| *end);
    // An initramfs of no bytes has no address either.
    let (initramfs, size) = place.initramfs;
    let top = if size == 0 { place.low_end } else { initramfs };
    // Linux takes what it needs early from the top down: of all RAM, but for what devices must reach.
    let needed = if place.has_high { 0 } else { place.ram / PAGES_PER_DESCRIPTOR_PAGE + TABLES };
    let descriptors = top.saturating_sub(needed).max(kernel_end);
    let bounce = (place.ram / 100 * BOUNCE_PERCENT).clamp(LEAST_BOUNCE, MOST_BOUNCE);
    let bounce = descriptors.saturating_sub(bounce).max(kernel_end);
    let allocations = kernel_end.saturating_add(ALLOCATIONS).min(bounce);
    let small = small.map(|(start, size)| (start, start + size));
    let rest = [(initramfs, initramfs + size), (descriptors, top), (bounce, descriptors), (kernel_end, allocations)];
    small.chain(kernel).chain(rest).filter_map(|(start, end)| whole_pages(start, end)).collect()
}

/// The pages that the bytes from `start` to `end` touch.
fn whole_pages(start: u64, end: u64) -> Option<GpaRange> {
    let first = start & !(PAGE_SIZE - 1);
    // None is touched by no bytes.
    let size = end.checked_sub(start).filter(|size| *size > 0)?;
    GpaRange::new(first, (start - first).checked_add(size)?.checked_next_multiple_of(PAGE_SIZE)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ranges(small: &[(u64, u64)], segments: &[(u64, u64)], place: Place) -> Vec<(u64, u64)> {
        let touched = touched(small.iter().copied(), segments.iter().copied(), place);
        touched.iter().map(|range| (range.start(), range.end())).collect()
    }

    #[test]
    fn all_parts_come_in_the_order_in_which_linux_touches_them() {
        let place = Place { ram: 512 * MIB, has_high: false, low_end: 512 * MIB, initramfs: (500 * MIB, MIB + 1) };
        let found = ranges(&[(0x9f00, 0x200)], &[(16 * MIB, 2 * MIB + 5), (19 * MIB, MIB)], place);
        let expected = [
            (0x9000, 0xb000),
            (16 * MIB, 20 * MIB), // the hole between the parts is small
            (500 * MIB, 501 * MIB + 0x1000),
            (488 * MIB, 500 * MIB),
            (424 * MIB, 488 * MIB),
            (20 * MIB, 34 * MIB),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn large_holes_are_left_out_and_nothing_lies_outside_of_ram() {
        // No initramfs, and hardly more memory than the kernel takes.
        let place = Place { ram: 80 * MIB, has_high: false, low_end: 80 * MIB, initramfs: (0, 0) };
        let found = ranges(&[], &[(16 * MIB, MIB), (40 * MIB, 10 * MIB)], place);
        let descriptors = 80 * MIB - 5 * MIB - MIB / 4;
        let expected = [(16 * MIB, 17 * MIB), (40 * MIB, 50 * MIB), (descriptors, 80 * MIB), (50 * MIB, descriptors)];
        assert_eq!(found, expected);
        let place = Place { ram: 50 * MIB, has_high: false, low_end: 50 * MIB, initramfs: (0, 0) };
        assert_eq!(ranges(&[], &[(40 * MIB, 10 * MIB)], place), [(40 * MIB, 50 * MIB)]);
    }

    #[test]
    fn where_there_is_more_ram_above_4_gib_linux_describes_it_there() {
        let place =
            Place { ram: 256 << 30, has_high: true, low_end: 3 << 30, initramfs: ((3 << 30) - 8 * MIB, 8 * MIB) };
        let found = ranges(&[], &[(16 * MIB, 10 * MIB)], place);
        let top = (3 << 30) - 8 * MIB;
        let expected =
            [(16 * MIB, 26 * MIB), (top, 3 << 30), (top - (1 << 30), top), (26 * MIB, 26 * MIB + ALLOCATIONS)];
        assert_eq!(found, expected);
    }
}
