//! What the guest can be told to do, and what it answers: the protocol on its serial port.
//!
//! A task is [`WORDS`] little-endian words: a number and its arguments. The answer is a line of text, `done` and two
//! words in hexadecimal digits, or `fault`, the vector and the address that a page fault names.

use anyhow::{Context, bail};
use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use super::program::{DONE, FAULT, SHARED_VIEW};

/// How many words a task has.
pub const WORDS: usize = 5;

pub const FILL: u32 = 1;
pub const TOUCH: u32 = 2;
pub const COMPARE: u32 = 3;
pub const READ: u32 = 4;
pub const HYPERCALL: u32 = 5;
pub const CHURN: u32 = 6;
pub const WRITE_MSR: u32 = 7;
pub const READ_MSR: u32 = 8;
pub const OUT: u32 = 9;
pub const TRIPLE_FAULT: u32 = 10;
pub const LOAD: u32 = 11;
pub const STORE: u32 = 12;
pub const OUT_WIDE: u32 = 13;

/// A task. Guest memory is named by its own address and the alias to use: that for private or that for shared pages.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// Write a word over and over.
    Fill { alias: PageState, range: GpaRange, word: u64 },
    /// Write a word to the start of each page.
    Touch { alias: PageState, range: GpaRange, word: u64 },
    /// Find the first word that is another one. Answers its number and what it is.
    Compare { alias: PageState, range: GpaRange, word: u64 },
    /// Answers a word.
    Read { alias: PageState, gpa: u64 },
    /// Answers what the hypercall leaves in RAX.
    Hypercall { number: u32, arguments: [u64; 3] },
    /// Make pages shared, touch them, make them private, touch them. Answers how many hypercalls returned anything but 0.
    Churn { range: GpaRange, pages_at_a_time: u64 },
    /// Write an MSR.
    WriteMsr { index: u32, value: u64 },
    /// Answers an MSR.
    ReadMsr { index: u32 },
    /// Write a byte to a port.
    Out { port: u16, value: u8 },
    /// Fault without any handler.
    TripleFault,
    /// Answers 1, 2, 4 or 8 bytes, read in one access.
    Load { alias: PageState, gpa: u64, bytes: u8 },
    /// Write 1, 2, 4 or 8 bytes in one access.
    Store { alias: PageState, gpa: u64, bytes: u8, value: u64 },
    /// Write four bytes to a port.
    OutWide { port: u16, value: u32 },
}

impl Task {
    /// The bytes that the guest takes.
    pub fn encode(&self) -> Vec<u8> {
        let words: [u64; WORDS] = match *self {
            Self::Fill { alias, range, word } => [FILL.into(), view(alias, range.start()), range.len() / 8, word, 0],
            Self::Touch { alias, range, word } => [TOUCH.into(), view(alias, range.start()), range.pages(), word, 0],
            Self::Compare { alias, range, word } => {
                [COMPARE.into(), view(alias, range.start()), range.len() / 8, word, 0]
            }
            Self::Read { alias, gpa } => [READ.into(), view(alias, gpa), 0, 0, 0],
            Self::Hypercall { number, arguments: [a, b, c] } => [HYPERCALL.into(), number.into(), a, b, c],
            Self::Churn { range, pages_at_a_time } => {
                [CHURN.into(), range.start(), pages_at_a_time, range.len() / (pages_at_a_time * PAGE_SIZE), 0]
            }
            Self::WriteMsr { index, value } => [WRITE_MSR.into(), index.into(), value, 0, 0],
            Self::ReadMsr { index } => [READ_MSR.into(), index.into(), 0, 0, 0],
            Self::Out { port, value } => [OUT.into(), port.into(), value.into(), 0, 0],
            Self::TripleFault => [TRIPLE_FAULT.into(), 0, 0, 0, 0],
            Self::Load { alias, gpa, bytes } => [LOAD.into(), view(alias, gpa), bytes.into(), 0, 0],
            Self::Store { alias, gpa, bytes, value } => [STORE.into(), view(alias, gpa), bytes.into(), value, 0],
            Self::OutWide { port, value } => [OUT_WIDE.into(), port.into(), value.into(), 0, 0],
        };
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// Where the guest sees an address through this alias.
fn view(alias: PageState, gpa: u64) -> u64 {
    match alias {
        PageState::Private => gpa,
        PageState::Shared => SHARED_VIEW + gpa,
    }
}

/// A processor exception in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Its vector.
    pub vector: u64,
    /// CR2, which means something after a page fault.
    pub address: u64,
}

/// What the guest answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It did as it was told.
    Done([u64; 2]),
    /// It tried to.
    Fault(Fault),
}

impl Reply {
    /// Reads a line.
    ///
    /// # Errors
    /// Anything that is no reply.
    pub fn parse(line: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, first, second] = words[..] else { bail!("the guest answered {line:?}") };
        let word = |digits| u64::from_str_radix(digits, 16).with_context(|| format!("the guest answered {line:?}"));
        let (first, second) = (word(first)?, word(second)?);
        match kind {
            DONE => Ok(Self::Done([first, second])),
            FAULT => Ok(Self::Fault(Fault { vector: first, address: second })),
            _ => bail!("the guest answered {line:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_the_same_size() {
        let range = GpaRange::new(0x1000, 0x4000).unwrap();
        let fill = Task::Fill { alias: PageState::Shared, range, word: 7 }.encode();
        assert_eq!(fill.len(), 8 * WORDS);
        assert_eq!(fill[8..16], (SHARED_VIEW + 0x1000).to_le_bytes());
        assert_eq!(fill[16..24], 0x800u64.to_le_bytes());
        assert_eq!(Task::TripleFault.encode().len(), 8 * WORDS);
        let churn = Task::Churn { range, pages_at_a_time: 2 }.encode();
        assert_eq!(churn[24..32], 2u64.to_le_bytes());
    }

    #[test]
    fn replies_are_read_and_noise_is_not() {
        assert_eq!(Reply::parse("done 0000000000000010 ffffffffffffffea").unwrap(), Reply::Done([16, -22i64 as u64]));
        let fault = Fault { vector: 13, address: 0x1000 };
        assert_eq!(Reply::parse("fault 0d 1000").unwrap(), Reply::Fault(fault));
        for noise in ["", "done", "done 1", "done 1 x", "gone 1 2", "done 1 2 3"] {
            assert!(Reply::parse(noise).is_err(), "{noise}");
        }
    }
}
