//! What of some bytes must be put into memory that holds zeros already.
//!
//! A quarter of Debian's vmlinux is zeros (its image has room for its uninitialised data). Each page of them that is left
//! alone is a page that nobody writes, copies or takes from the host before the guest wants it.
//!
//! There are at most [`MOST`] pieces however many holes the bytes have: the launch code's list has room for no more.

use hypervisor::PAGE_SIZE;

/// The least that is left out, in bytes: a piece more has its price, too.
const LEAST: usize = 64 << 10;
/// The most pieces of one list.
pub(super) const MOST: usize = 128;

/// Pieces of some bytes, taken off their front.
struct Pieces<'a, 'left> {
    gpa: u64,
    data: &'a [u8],
    left: &'left mut usize,
}

/// The pieces of `data`, which belongs at `gpa`, without long runs of zero pages, with their addresses. Each takes one off
/// `left`; with none left, the rest comes whole.
pub(super) fn pieces<'a>(gpa: u64, data: &'a [u8], left: &mut usize) -> impl Iterator<Item = (u64, &'a [u8])> {
    Pieces { gpa, data, left }
}

impl<'a> Pieces<'a, '_> {
    fn take(&mut self, length: usize) -> (u64, &'a [u8]) {
        let (taken, rest) = self.data.split_at(length);
        let gpa = self.gpa;
        (self.gpa, self.data) = (gpa + length as u64, rest);
        (gpa, taken)
    }
}

impl<'a> Iterator for Pieces<'a, '_> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (start, end) = hole(self.gpa, self.data, 0);
        if start == 0 && *self.left > 0 {
            self.take(end);
        }
        if self.data.is_empty() {
            return None;
        }
        if *self.left == 0 {
            return Some(self.take(self.data.len()));
        }
        *self.left -= 1;
        let end = if start == 0 { hole(self.gpa, self.data, 0).0 } else { start };
        Some(self.take(end))
    }
}

/// The first run of zeros that is worth leaving out, whole pages of the guest's, at or behind an offset; the end of `data` if
/// there is none.
fn hole(gpa: u64, data: &[u8], from: usize) -> (usize, usize) {
    let page_end = |at: usize| {
        let within = (gpa + at as u64) % PAGE_SIZE;
        (at + (PAGE_SIZE - within) as usize).min(data.len())
    };
    let (mut start, mut at) = (from, from);
    while at < data.len() {
        let end = page_end(at);
        if !is_zero(&data[at..end]) {
            if at - start >= LEAST {
                break;
            }
            start = end;
        }
        at = end;
    }
    if at - start >= LEAST { (start, at) } else { (data.len(), data.len()) }
}

/// Whether all of it is zero. Eight bytes at a time, for this reads all that is left out.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: usize = PAGE_SIZE as usize;

    /// Pages that are zero or not, the last one cut short.
    fn bytes(pages: &[(bool, usize)], cut: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (zero, count) in pages {
            for _ in 0..*count {
                let mut page = [0; PAGE];
                page[PAGE / 2] = u8::from(!zero);
                bytes.extend(page);
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        bytes
    }

    proptest! {
        #[test]
        fn pieces_and_zeros_are_the_whole(
            pages in proptest::collection::vec((any::<bool>(), 1..40usize), 0..12),
            cut in 0..PAGE,
            offset in 0..PAGE_SIZE,
            budget in 0..8usize,
        ) {
            let data = bytes(&pages, cut);
            let gpa = 0x10_0000 + offset;
            let (mut left, mut found, mut count) = (budget, vec![0; data.len()], 0);
            let mut end = gpa;
            for (at, piece) in pieces(gpa, &data, &mut left) {
                prop_assert!(at >= end && !piece.is_empty());
                end = at + piece.len() as u64;
                found[(at - gpa) as usize..(end - gpa) as usize].copy_from_slice(piece);
                count += 1;
            }
            prop_assert!(count <= budget + 1, "{count} pieces");
            prop_assert!(found == data);
        }
    }

    #[test]
    fn long_runs_of_zero_pages_are_left_out_and_short_ones_are_not() {
        let data = bytes(&[(true, 20), (false, 1), (true, 15), (false, 2), (true, 16), (false, 1), (true, 30)], 7);
        let mut left = MOST;
        let found: Vec<(u64, usize)> =
            pieces(0x10_0000, &data, &mut left).map(|(gpa, piece)| (gpa, piece.len())).collect();
        let page = |number: u64| 0x10_0000 + number * PAGE_SIZE;
        assert_eq!(found, [(page(20), 18 * PAGE), (page(54), PAGE)]);
        assert_eq!(left, MOST - 2);
        assert_eq!(pieces(page(0), &data[..16 * PAGE], &mut left).count(), 0);
    }
}
