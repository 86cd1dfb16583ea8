//! What tests write to memory: words that tell where they were written and by whom.
//!
//! There is one word in each cache line. The word at an address is `(address & mask) ^ seed`. With the full mask every
//! word differs, so a page that shows up at the wrong address is seen as well as a page with the wrong contents.

use hypervisor::GpaRange;

/// Distance of the words, in bytes.
pub const LINE: u64 = 64;

/// Contents of a range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    pub(crate) mask: u32,
    pub(crate) seed: u32,
}

impl Pattern {
    /// Memory that nobody has written, or that was discarded.
    pub const ZEROS: Self = Self::everywhere(0);

    /// A pattern of its own for each seed.
    pub const fn new(seed: u32) -> Self {
        Self { mask: u32::MAX, seed }
    }

    /// The same word everywhere, so that memory can be recognised at another address.
    pub const fn everywhere(word: u32) -> Self {
        Self { mask: 0, seed: word }
    }

    /// The word at this address, of which the lower 32 bits count.
    pub fn word(self, address: u64) -> u32 {
        (address as u32 & self.mask) ^ self.seed
    }

    /// The bytes of a range: the words, and zeros between them.
    pub fn bytes(self, range: GpaRange) -> Vec<u8> {
        let mut bytes = vec![0; range.len() as usize];
        for (address, line) in lines(range).zip(bytes.chunks_exact_mut(LINE as usize)) {
            line[..4].copy_from_slice(&self.word(address).to_le_bytes());
        }
        bytes
    }

    /// The first word of a range that is not in these bytes: its address and what is there.
    pub fn first_difference(self, range: GpaRange, bytes: &[u8]) -> Option<(u64, u32)> {
        let words = bytes.chunks_exact(LINE as usize).map(|line| [line[0], line[1], line[2], line[3]]);
        let mut words = lines(range).zip(words.map(u32::from_le_bytes));
        words.find(|(address, word)| *word != self.word(*address))
    }
}

fn lines(range: GpaRange) -> impl Iterator<Item = u64> {
    (range.start()..range.end()).step_by(LINE as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_differ_by_address_and_by_seed() {
        let range = GpaRange::new(0x1000, 0x1000).unwrap();
        let next = GpaRange::new(0x2000, 0x1000).unwrap();
        let pattern = Pattern::new(7);
        let bytes = pattern.bytes(range);
        assert_eq!(bytes.len(), 0x1000);
        assert_eq!(pattern.first_difference(range, &bytes), None);
        assert_eq!(pattern.first_difference(next, &bytes), Some((0x2000, 0x1007)));
        assert_eq!(Pattern::new(8).first_difference(range, &bytes), Some((0x1000, 0x1007)));
    }

    #[test]
    fn one_wrong_word_is_found() {
        let range = GpaRange::new(0x1000, 0x1000).unwrap();
        let mut bytes = Pattern::ZEROS.bytes(range);
        assert!(bytes.iter().all(|byte| *byte == 0));
        bytes[0xfc0] = 1;
        assert_eq!(Pattern::ZEROS.first_difference(range, &bytes), Some((0x1fc0, 1)));
    }
}
