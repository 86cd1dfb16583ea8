//! Counts byte strings in memory that is read piece by piece.
//!
//! A [`Scanner`] reads in chunks into one buffer and keeps the end of each chunk, so that a needle that lies across a
//! border of two chunks, or of two ranges that meet, is found, and found once. Occurrences that overlap count once, as
//! in a search of the whole text.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memchr::memmem::Finder;

/// What can be read at a position.
pub trait ReadAt {
    /// Reads up to `buffer.len()` bytes from `position` on; 0 is the end.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, position)
    }
}

/// Bytes read at a time.
pub const CHUNK: usize = 1 << 20;
const PAGE: u64 = 4096;

/// A byte string to be counted.
struct Needle {
    finder: Finder<'static>,
    hits: u64,
    /// Where the last hit ended: the next one begins there or later.
    not_before: u64,
}

/// The state of one search; see the module's page.
pub struct Scanner {
    needles: Vec<Needle>,
    /// What is kept of the chunk before, then the chunk.
    buffer: Vec<u8>,
    kept: usize,
    keep_at_most: usize,
    /// Where the chunk before ended.
    position: Option<u64>,
    bytes: u64,
}

/// A part of a range that cannot be read.
#[derive(Debug)]
pub struct Refused {
    /// Its length in bytes.
    pub bytes: u64,
    /// The first error.
    pub error: io::Error,
}

impl Refused {
    /// Adds `more` to `total`, keeping the first error.
    pub fn add(total: &mut Option<Self>, more: Option<Self>) {
        match (total, more) {
            (Some(total), Some(more)) => total.bytes += more.bytes,
            (total @ None, more) => *total = more,
            (Some(_), None) => {}
        }
    }
}

impl Scanner {
    /// A scanner for `needles`, none of them empty.
    pub fn new(needles: &[&[u8]]) -> Self {
        let longest = needles.iter().map(|needle| needle.len()).max().unwrap_or(0);
        let keep_at_most = longest.saturating_sub(1);
        let needles = needles
            .iter()
            .map(|needle| Needle { finder: Finder::new(needle).into_owned(), hits: 0, not_before: 0 })
            .collect();
        Self { needles, buffer: vec![0; keep_at_most + CHUNK], kept: 0, keep_at_most, position: None, bytes: 0 }
    }

    /// How often each needle was found, in the order given to [`Scanner::new`].
    pub fn hits(&self) -> Vec<u64> {
        self.needles.iter().map(|needle| needle.hits).collect()
    }

    /// How many bytes were searched.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets the position: what is read next does not continue what was read before.
    pub fn start_anew(&mut self) {
        self.position = None;
    }

    /// Searches `length` bytes from `start` on, or up to the end of the file. Pages that can't be read are passed over
    /// and reported.
    pub fn search(&mut self, file: &impl ReadAt, start: u64, length: u64) -> Option<Refused> {
        let end = start.saturating_add(length);
        let mut position = start;
        let mut refused: Option<Refused> = None;
        while position < end {
            match self.read(file, position, end - position) {
                Ok(0) => break,
                Ok(count) => position += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let next = (position / PAGE * PAGE).saturating_add(PAGE).min(end);
                    let missing = refused.get_or_insert(Refused { bytes: 0, error });
                    missing.bytes += next - position;
                    position = next;
                }
            }
        }
        refused
    }

    /// Reads one chunk and counts in it.
    fn read(&mut self, file: &impl ReadAt, position: u64, length: u64) -> io::Result<usize> {
        if self.position != Some(position) {
            self.kept = 0;
            self.needles.iter_mut().for_each(|needle| needle.not_before = position);
        }
        let wanted = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        let count = file.read_at(&mut self.buffer[self.kept..self.kept + wanted], position)?;
        let filled = self.kept + count;
        let window_start = position - self.kept as u64;
        for needle in &mut self.needles {
            let size = needle.finder.needle().len();
            // What is kept is shorter than the longest needle; a shorter one may lie in it, and has been counted then.
            let from = needle.not_before.saturating_sub(window_start) as usize;
            for found in needle.finder.find_iter(&self.buffer[from..filled]) {
                needle.hits += 1;
                needle.not_before = window_start + (from + found + size) as u64;
            }
        }
        let keep = filled.min(self.keep_at_most);
        self.buffer.copy_within(filled - keep..filled, 0);
        self.kept = keep;
        self.position = Some(position + count as u64);
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Memory that gives at most `step` bytes at a time and refuses one page.
    struct Text<'a> {
        bytes: &'a [u8],
        step: usize,
        refused_page: Option<u64>,
    }

    impl ReadAt for Text<'_> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = match self.refused_page {
                Some(page) if page == offset / PAGE => return Err(io::ErrorKind::PermissionDenied.into()),
                Some(page) if page > offset / PAGE => (page * PAGE) as usize,
                _ => self.bytes.len(),
            };
            let rest = &self.bytes[(offset as usize).min(end)..end];
            let count = rest.len().min(self.step).min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    fn occurrences(text: &[u8], needle: &[u8]) -> u64 {
        let (mut at, mut count) = (0, 0);
        while at + needle.len() <= text.len() {
            if text[at..].starts_with(needle) {
                count += 1;
                at += needle.len();
            } else {
                at += 1;
            }
        }
        count
    }

    proptest! {
        #[test]
        fn counts_as_a_search_of_the_whole_does(
            text in proptest::collection::vec(0_u8..2, 0..200),
            needles in proptest::collection::vec(proptest::collection::vec(0_u8..2, 1..7), 1..3),
            step in 1_usize..12,
            cut in 0_u64..200,
        ) {
            let needles: Vec<&[u8]> = needles.iter().map(Vec::as_slice).collect();
            let mut scanner = Scanner::new(&needles);
            let file = Text { bytes: &text, step, refused_page: None };
            let cut = cut.min(text.len() as u64);
            // Two ranges that meet are one text.
            prop_assert!(scanner.search(&file, 0, cut).is_none());
            prop_assert!(scanner.search(&file, cut, text.len() as u64 - cut).is_none());
            let expected: Vec<u64> = needles.iter().map(|needle| occurrences(&text, needle)).collect();
            prop_assert_eq!(scanner.hits(), expected);
            prop_assert_eq!(scanner.bytes(), text.len() as u64);
        }
    }

    #[test]
    fn needle_across_a_chunk_border_is_found_once() {
        let needle = [7_u8; 64];
        for before in [0, 1, 32, 63, 64] {
            let mut text = vec![0; CHUNK + 4096];
            text[CHUNK - before..][..64].copy_from_slice(&needle);
            let mut scanner = Scanner::new(&[&needle]);
            assert!(
                scanner
                    .search(&Text { bytes: &text, step: usize::MAX, refused_page: None }, 0, text.len() as u64)
                    .is_none()
            );
            assert_eq!(scanner.hits(), [1], "{before} bytes before the border");
        }
    }

    #[test]
    fn ranges_that_do_not_meet_are_not_joined() {
        let text = [b"ab".as_slice(), &[0; 100], b"cd"].concat();
        let file = Text { bytes: &text, step: usize::MAX, refused_page: None };
        let mut scanner = Scanner::new(&[b"abcd"]);
        scanner.search(&file, 0, 2);
        scanner.search(&file, 102, 2);
        assert_eq!(scanner.hits(), [0]);

        let mut scanner = Scanner::new(&[b"abcd"]);
        let halves = [b"ab".as_slice(), b"..cd"];
        scanner.search(&Text { bytes: halves[0], step: 9, refused_page: None }, 0, 2);
        scanner.start_anew();
        scanner.search(&Text { bytes: halves[1], step: 9, refused_page: None }, 2, 2);
        assert_eq!(scanner.hits(), [0]);
    }

    #[test]
    fn unreadable_page_is_passed_over_and_reported() {
        let mut text = vec![0; 4 * 4096];
        for page in 0..4 {
            text[page * 4096 + 100..][..4].copy_from_slice(b"abcd");
        }
        let mut scanner = Scanner::new(&[b"abcd"]);
        let file = Text { bytes: &text, step: usize::MAX, refused_page: Some(1) };
        let refused = scanner.search(&file, 0, text.len() as u64).unwrap();
        assert_eq!(refused.bytes, 4096);
        assert_eq!(refused.error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(scanner.hits(), [3]);
        assert_eq!(scanner.bytes(), 3 * 4096);
    }
}
