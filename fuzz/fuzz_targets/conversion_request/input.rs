//! What is said, to which guest: any numbers, and those that a guest of this layout would say, or nearly.

use arch::x86_64::MemoryLayout;
use arch::x86_64::map::{HIGH_RAM_START, LOW_END, LOW_RAM_LIMIT};
use arch::x86_64::memory_layout::Aliasing;
use arch::x86_64::private_faults::PrivacyBit;
use arch::x86_64::private_faults::tdx::AddressWidth;
use hypervisor::PAGE_SIZE;
use libfuzzer_sys::arbitrary::{self, Arbitrary};

use crate::oracle;

#[derive(Debug, Arbitrary)]
pub struct Input {
    aliases: Aliases,
    /// RAM beyond the least there can be, in pages.
    pages: u32,
    said: Said,
}

#[derive(Debug, Arbitrary)]
enum Aliases {
    SharedOnly,
    OnePerState,
    OneForBoth,
}

#[derive(Debug, Arbitrary)]
enum Said {
    MapGpaRange { gpa: Number, pages: Number, attributes: Word },
    MemoryFault { flags: Word, gpa: Number, size: Number },
    CBit { bit: u8, gpa: Number, size: Number },
    SharedBit { wide: bool, gpa: Number, size: Number },
    TdxMapGpa { wide: bool, r12: Number, r13: Number, resume: Number },
    SnpMsr { gpa: Number, operation: u8, other: Word },
    SnpBuffer { header: Header, budget: u8, entries: Vec<Entry> },
}

/// Any number, or one that a guest of this layout would say, or nearly.
#[derive(Debug, Arbitrary)]
enum Number {
    Any(u64),
    Pages(u16),
    Near { edge: Edge, tag: Option<u8>, pages: i16, bytes: i8 },
    Page { edge: Edge, tag: Option<u8>, pages: i16 },
}

#[derive(Debug, Arbitrary)]
enum Edge {
    LowEnd,
    EndOfLow,
    HighStart,
    EndOfHigh,
    Bit(u8),
}

/// Any word, or a small one.
#[derive(Debug, Arbitrary)]
enum Word {
    Any(u64),
    Small(u8),
}

#[derive(Debug, Arbitrary)]
enum Header {
    Any(u64),
    /// All entries, from the given one on.
    From(u8),
}

#[derive(Debug, Arbitrary)]
enum Operation {
    Private,
    Shared,
    Any(u8),
}

#[derive(Debug, Arbitrary)]
enum Entry {
    Any(u64),
    Page {
        gpa: Number,
        operation: Operation,
        large: bool,
        done: Option<u16>,
    },
    /// What follows on the entry before it.
    Neighbour,
}

impl Input {
    /// Whether it says the thing of this name.
    #[allow(dead_code, reason = "for what makes the seeds")]
    pub fn says(&self, name: &str) -> bool {
        format!("{:?}", self.said).starts_with(name)
    }

    /// Says it, and returns how many requests came of it.
    pub fn check(&self) -> usize {
        let aliasing = match self.aliases {
            Aliases::SharedOnly => Aliasing::SharedOnly,
            Aliases::OnePerState => Aliasing::OnePerState,
            Aliases::OneForBoth => Aliasing::OneForBoth,
        };
        let size = 0x10_1000 + u64::from(self.pages) * PAGE_SIZE;
        let layout = &MemoryLayout::with_aliasing(aliasing, size, 48).expect("16 TiB fit into 47 bits");
        let number = |number: &Number| number.resolve(layout);
        match &self.said {
            Said::MapGpaRange { gpa, pages, attributes } => {
                oracle::map_gpa_range(layout, number(gpa), number(pages), attributes.value())
            }
            Said::MemoryFault { flags, gpa, size } => {
                oracle::memory_fault(layout, flags.value(), number(gpa), number(size))
            }
            Said::CBit { bit, gpa, size } => match PrivacyBit::c_bit(*bit) {
                Some(bit) => oracle::tagged_access(layout, bit, number(gpa), number(size)),
                None => 0,
            },
            Said::SharedBit { wide, gpa, size } => {
                oracle::tagged_access(layout, PrivacyBit::shared_bit(width(*wide)), number(gpa), number(size))
            }
            Said::TdxMapGpa { wide, r12, r13, resume } => {
                oracle::tdx_map_gpa(layout, width(*wide), number(r12), number(r13), number(resume))
            }
            Said::SnpMsr { gpa, operation, other } => {
                let gpa = number(gpa);
                [gpa, page(gpa, *operation) | 0x014, page(gpa, *operation) | other.value()]
                    .map(|value| oracle::snp_msr(layout, value))
                    .iter()
                    .sum()
            }
            Said::SnpBuffer { header, budget, entries } => {
                let mut words = Vec::with_capacity(entries.len());
                for entry in entries {
                    let word = entry.resolve(layout, words.last().copied());
                    words.push(word);
                }
                let header = match header {
                    Header::Any(header) => *header,
                    Header::From(first) => {
                        let count = words.len() as u64;
                        count.saturating_sub(1) << 16 | (u64::from(*first) % (count + 2))
                    }
                };
                oracle::snp_buffer(layout, header, &words, (*budget).into())
            }
        }
    }
}

fn width(wide: bool) -> AddressWidth {
    if wide { AddressWidth::Bits52 } else { AddressWidth::Bits48 }
}

/// A frame and an operation where SEV-SNP has them.
fn page(gpa: u64, operation: u8) -> u64 {
    gpa & 0x000f_ffff_ffff_f000 | u64::from(operation & 0xf) << 52
}

impl Number {
    fn resolve(&self, layout: &MemoryLayout) -> u64 {
        let near = |edge: &Edge, tag: &Option<u8>, pages: i16, bytes: i8| {
            let low = layout.size().min(LOW_RAM_LIMIT);
            let edge = match edge {
                Edge::LowEnd => LOW_END,
                Edge::EndOfLow => low,
                Edge::HighStart => HIGH_RAM_START,
                Edge::EndOfHigh => HIGH_RAM_START + (layout.size() - low),
                Edge::Bit(bit) => 1 << (bit % 64),
            };
            let tag = tag.map_or(0, |bit| 1 << (bit % 64));
            (edge | tag).wrapping_add_signed(i64::from(pages) * PAGE_SIZE as i64 + i64::from(bytes))
        };
        match self {
            Self::Any(number) => *number,
            Self::Pages(pages) => u64::from(*pages) * PAGE_SIZE,
            Self::Near { edge, tag, pages, bytes } => near(edge, tag, *pages, *bytes),
            Self::Page { edge, tag, pages } => near(edge, tag, *pages, 0),
        }
    }
}

impl Word {
    fn value(&self) -> u64 {
        match self {
            Self::Any(word) => *word,
            Self::Small(word) => (*word).into(),
        }
    }
}

impl Entry {
    fn resolve(&self, layout: &MemoryLayout, previous: Option<u64>) -> u64 {
        match (self, previous) {
            (Self::Any(entry), _) => *entry,
            (Self::Page { gpa, operation, large, done }, _) => {
                let operation = match operation {
                    Operation::Private => 1,
                    Operation::Shared => 2,
                    Operation::Any(operation) => *operation,
                };
                let (gpa, done) = (gpa.resolve(layout), u64::from(done.unwrap_or_default()));
                match large {
                    true => page(gpa >> 21 << 21, operation) | 1 << 56 | (done % 514),
                    false => page(gpa, operation) | (done % 3),
                }
            }
            (Self::Neighbour, None) => 0,
            (Self::Neighbour, Some(entry)) => {
                let pages = if entry >> 56 & 1 == 0 { 1 } else { 512 };
                (entry & !0xfff).wrapping_add(pages * PAGE_SIZE)
            }
        }
    }
}
