//! The program headers of Linux's `vmlinux`, a 64-bit ELF file.

use std::ops::Range;

use super::bytes_at;

/// The most program headers that a kernel may have. Linux has five.
pub const MAX_PROGRAM_HEADERS: u16 = 64;

const MAGIC: &[u8; 4] = b"\x7fELF";
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;

const CLASS: usize = 4;
const DATA: usize = 5;
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const TYPE_RELOCATABLE: u16 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_DYNAMIC: u16 = 3;
const TYPE_CORE: u16 = 4;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_INTERPRETER: u32 = 3;
const SEGMENT_THREAD_LOCAL: u32 = 7;
const FLAG_EXECUTE: u32 = 1;

/// An ELF file that is damaged, or no x86-64 kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The file ends inside its header.
    #[error("the ELF header has {HEADER_SIZE} bytes, and the file ends after {length}: the file is truncated")]
    Truncated {
        /// Length of the file.
        length: usize,
    },
    /// The file is no ELF file.
    #[error("it starts with bytes {found:02x?}, not with ELF's")]
    Magic {
        /// Its first bytes.
        found: [u8; 4],
    },
    /// The file is for 32 bits, or damaged.
    #[error("the ELF class at 0x4 is {found}{}, not 2 (64-bit): pass an x86-64 kernel", class_name(*.found))]
    Class {
        /// The value found.
        found: u8,
    },
    /// The file is for a big-endian machine, or damaged.
    #[error("the byte order at 0x5 is {found}, not 1 (little-endian): pass an x86-64 kernel")]
    ByteOrder {
        /// The value found.
        found: u8,
    },
    /// The file is for another machine.
    #[error("the machine at 0x12 is {found}{}, not 62 (x86-64): pass an x86-64 kernel", machine_name(*.found))]
    Machine {
        /// The value found.
        found: u16,
    },
    /// The file is not linked to be entered.
    #[error("the type at 0x10 is {found}{}, not 2 (executable): pass a vmlinux or vmlinuz", type_name(*.found))]
    Type {
        /// The value found.
        found: u16,
    },
    /// The file is a program for an operating system.
    #[error("program header {index} is of type {kind}: this is a program for an operating system, not a kernel")]
    Program {
        /// Which program header.
        index: usize,
        /// Its type: 3 asks for an interpreter, 7 for thread-local data.
        kind: u32,
    },
    /// The size of program headers can't be.
    #[error("the size of a program header at 0x36 is {found}, not {PROGRAM_HEADER_SIZE}: the file is damaged")]
    ProgramHeaderSize {
        /// The value found.
        found: u16,
    },
    /// There are more program headers than any kernel has.
    #[error("the number of program headers at 0x38 is {found}, more than the limit of {MAX_PROGRAM_HEADERS}")]
    TooManyProgramHeaders {
        /// The value found.
        found: u16,
    },
    /// The program headers are not inside the file.
    #[error(
        "{count} program headers at {offset:#x} don't fit into a file of {length:#x} bytes: it is truncated or damaged"
    )]
    ProgramHeadersOutside {
        /// Offset of the first.
        offset: u64,
        /// How many there are.
        count: u16,
        /// Length of the file.
        length: usize,
    },
    /// Nothing is to be loaded.
    #[error("none of the {count} program headers loads anything: the file is no kernel")]
    NoSegments {
        /// How many program headers there are.
        count: u16,
    },
    /// The bytes of a segment are not inside the file.
    #[error(
        "segment {index} has {size:#x} bytes at {offset:#x}, outside the file's {length:#x} bytes: it is truncated or damaged"
    )]
    SegmentOutside {
        /// Which program header.
        index: usize,
        /// Offset of the bytes.
        offset: u64,
        /// How many bytes there are.
        size: u64,
        /// Length of the file.
        length: usize,
    },
    /// A segment has more bytes in the file than in memory.
    #[error("segment {index} has {file_size:#x} bytes in the file and {memory_size:#x} in memory: the file is damaged")]
    SegmentSize {
        /// Which program header.
        index: usize,
        /// Its size in the file.
        file_size: u64,
        /// Its size in memory.
        memory_size: u64,
    },
    /// A segment reaches past the end of the address space.
    #[error(
        "segment {index} of {memory_size:#x} bytes at physical address {gpa:#x} ends past 2^64: the file is damaged"
    )]
    SegmentOverflow {
        /// Which program header.
        index: usize,
        /// Its address.
        gpa: u64,
        /// Its size in memory.
        memory_size: u64,
    },
    /// Two segments want the same memory.
    #[error("two segments overlap: {first_gpa:#x}-{first_end:#x} and the one at physical address {second_gpa:#x}")]
    SegmentsOverlap {
        /// Address of the lower one.
        first_gpa: u64,
        /// End of the lower one.
        first_end: u64,
        /// Address of the higher one.
        second_gpa: u64,
    },
    /// The entry is not in code.
    #[error(
        "the entry {entry:#x} at 0x18 is no physical address in an executable segment: the file is no Linux kernel"
    )]
    Entry {
        /// The value found.
        entry: u64,
    },
}

fn class_name(class: u8) -> &'static str {
    if class == CLASS_32 { " (32-bit)" } else { "" }
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        3 => " (i386)",
        8 => " (MIPS)",
        20 => " (PowerPC)",
        21 => " (64-bit PowerPC)",
        22 => " (S/390)",
        40 => " (Arm)",
        43 => " (64-bit SPARC)",
        183 => " (arm64)",
        243 => " (RISC-V)",
        247 => " (BPF)",
        258 => " (LoongArch)",
        _ => "",
    }
}

fn type_name(kind: u16) -> &'static str {
    match kind {
        TYPE_RELOCATABLE => " (relocatable, as kernel modules are)",
        TYPE_DYNAMIC => " (shared library or position-independent program)",
        TYPE_CORE => " (core dump)",
        _ => "",
    }
}

/// What an ELF kernel says of itself, checked.
#[derive(Debug, Clone)]
pub(super) struct Vmlinux {
    pub entry: u64,
    /// By ascending address, apart from each other, at least one.
    pub loads: Vec<Load>,
}

/// A segment to be loaded, of at least one byte.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub gpa: u64,
    /// Where its bytes are in the file. Inside the file, and no longer than `memory_size`.
    pub data: Range<usize>,
    /// `gpa + memory_size` does not overflow.
    pub memory_size: u64,
    executable: bool,
}

impl Load {
    pub fn end(&self) -> u64 {
        self.gpa + self.memory_size
    }

    /// Whether an instruction of the file is at the address.
    fn has_code_at(&self, gpa: u64) -> bool {
        self.executable && gpa.checked_sub(self.gpa).is_some_and(|offset| offset < self.data.len() as u64)
    }
}

/// Whether the file starts as ELF files do.
pub(super) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

impl Vmlinux {
    /// Reads and checks the header and the program headers.
    pub fn parse(file: &[u8]) -> Result<Self, ElfError> {
        let header = Fields(file.first_chunk::<HEADER_SIZE>().ok_or(ElfError::Truncated { length: file.len() })?);
        check_identity(&header)?;

        let entry = header.u64(0x18);
        let offset = header.u64(0x20);
        let size = header.u16(0x36);
        let count = header.u16(0x38);
        if count > 0 && usize::from(size) != PROGRAM_HEADER_SIZE {
            return Err(ElfError::ProgramHeaderSize { found: size });
        }
        if count > MAX_PROGRAM_HEADERS {
            return Err(ElfError::TooManyProgramHeaders { found: count });
        }
        let mut loads = Vec::new();
        for index in 0..usize::from(count) {
            let program_header = usize::try_from(offset)
                .ok()
                .and_then(|offset| offset.checked_add(index * PROGRAM_HEADER_SIZE))
                .and_then(|offset| bytes_at::<PROGRAM_HEADER_SIZE>(file, offset))
                .ok_or(ElfError::ProgramHeadersOutside { offset, count, length: file.len() })?;
            loads.extend(Load::parse(file, index, &Fields(&program_header))?);
        }
        if loads.is_empty() {
            return Err(ElfError::NoSegments { count });
        }

        loads.sort_by_key(|load| load.gpa);
        let mut neighbours = loads.iter().zip(loads.iter().skip(1));
        if let Some((first, second)) = neighbours.find(|(first, second)| second.gpa < first.end()) {
            return Err(ElfError::SegmentsOverlap {
                first_gpa: first.gpa,
                first_end: first.end(),
                second_gpa: second.gpa,
            });
        }
        if !loads.iter().any(|load| load.has_code_at(entry)) {
            return Err(ElfError::Entry { entry });
        }
        Ok(Self { entry, loads })
    }
}

fn check_identity(header: &Fields<HEADER_SIZE>) -> Result<(), ElfError> {
    let magic = header.bytes(0);
    if magic != *MAGIC {
        return Err(ElfError::Magic { found: magic });
    }
    let class = header.0[CLASS];
    if class != CLASS_64 {
        return Err(ElfError::Class { found: class });
    }
    let data = header.0[DATA];
    if data != DATA_LITTLE_ENDIAN {
        return Err(ElfError::ByteOrder { found: data });
    }
    let machine = header.u16(0x12);
    if machine != MACHINE_X86_64 {
        return Err(ElfError::Machine { found: machine });
    }
    let kind = header.u16(0x10);
    if kind != TYPE_EXECUTABLE {
        return Err(ElfError::Type { found: kind });
    }
    Ok(())
}

impl Load {
    /// Reads a program header; none if it loads nothing.
    fn parse(file: &[u8], index: usize, header: &Fields<PROGRAM_HEADER_SIZE>) -> Result<Option<Self>, ElfError> {
        let kind = header.u32(0x00);
        if kind == SEGMENT_INTERPRETER || kind == SEGMENT_THREAD_LOCAL {
            return Err(ElfError::Program { index, kind });
        }
        let offset = header.u64(0x08);
        let gpa = header.u64(0x18);
        let file_size = header.u64(0x20);
        let memory_size = header.u64(0x28);
        if kind != SEGMENT_LOAD {
            return Ok(None);
        }
        if file_size > memory_size {
            return Err(ElfError::SegmentSize { index, file_size, memory_size });
        }
        if memory_size == 0 {
            return Ok(None);
        }
        if gpa.checked_add(memory_size).is_none() {
            return Err(ElfError::SegmentOverflow { index, gpa, memory_size });
        }
        // Where no bytes lie does not matter.
        let start = if file_size == 0 { 0 } else { offset };
        let data = usize::try_from(start)
            .ok()
            .zip(usize::try_from(file_size).ok())
            .and_then(|(start, size)| Some(start..start.checked_add(size)?))
            .filter(|data| data.end <= file.len())
            .ok_or(ElfError::SegmentOutside { index, offset, size: file_size, length: file.len() })?;
        Ok(Some(Self { gpa, data, memory_size, executable: header.u32(0x04) & FLAG_EXECUTE != 0 }))
    }
}

/// The little-endian fields of a structure. Offsets are constants of the caller's, inside `N`.
struct Fields<'a, const N: usize>(&'a [u8; N]);

impl<const N: usize> Fields<'_, N> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn bytes<const M: usize>(&self, at: usize) -> [u8; M] {
        std::array::from_fn(|i| self.0[at + i])
    }
}
