//! ELF files, without a bzImage around them.

use arch::x86_64::image::{ElfError, ImageError, KernelImage, MAX_PROGRAM_HEADERS};
use object::{Object, ObjectSegment};

use crate::builder::{EXECUTE, INTERPRETER, Part, THREAD_LOCAL, elf, kernel, kernel_parts, program_header, put};
use crate::{messages, refusal};

fn elf_refusal(file: &[u8]) -> ElfError {
    match refusal(file) {
        ImageError::Elf(error) => error,
        other => panic!("not refused as an ELF file, but with {other:?}"),
    }
}

/// A sound kernel with some bytes overwritten.
fn damaged<const N: usize>(offset: usize, bytes: [u8; N]) -> Vec<u8> {
    let mut file = kernel();
    put(&mut file, offset, bytes);
    file
}

#[test]
fn an_independent_reader_finds_the_same_segments() {
    let file = kernel();
    let image = KernelImage::parse(&file).unwrap();
    let oracle = object::read::elf::ElfFile64::<object::LittleEndian>::parse(&*file).unwrap();
    assert_eq!(image.entry(), oracle.entry());
    let mut expected: Vec<_> = oracle
        .segments()
        .map(|segment| {
            let header = segment.elf_program_header();
            (header.p_paddr.get(object::LittleEndian), segment.data().unwrap(), segment.size())
        })
        .collect();
    expected.sort();
    let found: Vec<_> = image.segments().map(|segment| (segment.gpa, segment.data, segment.memory_size)).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_truncation_is_refused() {
    let file = kernel();
    for length in 0..file.len() {
        let error = refusal(&file[..length]);
        match length {
            0 => assert!(matches!(error, ImageError::Empty)),
            1..4 => assert!(matches!(error, ImageError::TooShort { length: found } if found == length)),
            _ => assert!(matches!(error, ImageError::Elf(_)), "{length}: {error:?}"),
        }
    }
}

#[test]
fn other_classes_machines_and_types_are_named() {
    for (offset, byte, phrase) in [
        (0x04, 1, "is 1 (32-bit), not 2 (64-bit)"),
        (0x04, 9, "is 9, not 2"),
        (0x05, 2, "byte order at 0x5 is 2"),
        (0x10, 1, "is 1 (relocatable, as kernel modules are)"),
        (0x10, 3, "is 3 (shared library"),
        (0x10, 4, "is 4 (core dump)"),
        (0x12, 3, "is 3 (i386)"),
        (0x12, 183, "is 183 (arm64)"),
        (0x12, 243, "is 243 (RISC-V)"),
        (0x12, 255, "is 255, not 62 (x86-64)"),
    ] {
        let found = messages(&refusal(&damaged(offset, [byte])));
        assert!(found.contains(phrase), "{found:?} should contain {phrase:?}");
    }
}

#[test]
fn programs_of_an_operating_system_are_refused() {
    for kind in [INTERPRETER, THREAD_LOCAL] {
        let mut parts = kernel_parts();
        parts[1].kind = kind;
        let error = elf_refusal(&elf(0x100_0005, &parts));
        assert!(matches!(error, ElfError::Program { index: 1, kind: found } if found == kind), "{error:?}");
    }
}

#[test]
fn the_program_header_table_must_be_in_the_file() {
    let error = elf_refusal(&damaged(0x36, 55_u16.to_le_bytes()));
    assert!(matches!(error, ElfError::ProgramHeaderSize { found: 55 }));

    for offset in [u64::MAX, u64::MAX - 100, 1 << 32, kernel().len() as u64 - 223] {
        let error = elf_refusal(&damaged(0x20, offset.to_le_bytes()));
        assert!(matches!(error, ElfError::ProgramHeadersOutside { count: 4, .. }), "{offset:#x}: {error:?}");
    }
}

#[test]
fn the_number_of_program_headers_is_limited() {
    let parts = |count: u16| -> Vec<_> {
        (0..u64::from(count)).map(|i| Part::load(EXECUTE, 0x100_0000 + i * 0x1000, b"text", 0x1000)).collect()
    };
    let most = elf(0x100_0000, &parts(MAX_PROGRAM_HEADERS));
    assert_eq!(KernelImage::parse(&most).unwrap().segments().count(), usize::from(MAX_PROGRAM_HEADERS));

    let error = elf_refusal(&elf(0x100_0000, &parts(MAX_PROGRAM_HEADERS + 1)));
    assert!(matches!(error, ElfError::TooManyProgramHeaders { found } if found == MAX_PROGRAM_HEADERS + 1));
    let error = elf_refusal(&damaged(0x38, 0xffff_u16.to_le_bytes()));
    assert!(matches!(error, ElfError::TooManyProgramHeaders { found: 0xffff }));
}

#[test]
fn a_kernel_loads_something() {
    let error = elf_refusal(&damaged(0x38, 0_u16.to_le_bytes()));
    assert!(matches!(error, ElfError::NoSegments { count: 0 }));
    let error = elf_refusal(&elf(0, &[Part::load(EXECUTE, 0, b"", 0)]));
    assert!(matches!(error, ElfError::NoSegments { count: 1 }));
}

#[test]
fn the_bytes_of_a_segment_must_be_in_the_file() {
    let file = kernel();
    let text = program_header(2);
    for offset in [u64::MAX, u64::MAX - 4, file.len() as u64, 1 << 40] {
        let error = elf_refusal(&damaged(text + 0x08, offset.to_le_bytes()));
        assert!(matches!(error, ElfError::SegmentOutside { index: 2, offset: found, .. } if found == offset));
    }
    let error = elf_refusal(&damaged(text + 0x20, (file.len() as u64).to_le_bytes()));
    assert!(matches!(error, ElfError::SegmentOutside { index: 2, .. }), "{error:?}");
}

#[test]
fn where_a_segment_without_bytes_would_have_them_does_not_matter() {
    let file = damaged(program_header(3) + 0x08, u64::MAX.to_le_bytes());
    assert_eq!(KernelImage::parse(&file).unwrap().segments().last().unwrap().data, []);
}

#[test]
fn a_segment_has_no_more_bytes_in_the_file_than_in_memory() {
    let error = elf_refusal(&damaged(program_header(0) + 0x28, 3_u64.to_le_bytes()));
    assert!(matches!(error, ElfError::SegmentSize { index: 0, file_size: 4, memory_size: 3 }));
    let error = elf_refusal(&damaged(program_header(0) + 0x28, 0_u64.to_le_bytes()));
    assert!(matches!(error, ElfError::SegmentSize { index: 0, file_size: 4, memory_size: 0 }));
}

#[test]
fn a_segment_ends_within_the_address_space() {
    // The data has 0x5000 bytes in memory.
    let error = elf_refusal(&damaged(program_header(0) + 0x18, (u64::MAX - 0x4fff).to_le_bytes()));
    assert!(matches!(error, ElfError::SegmentOverflow { index: 0, memory_size: 0x5000, .. }));
    let error = elf_refusal(&damaged(program_header(3) + 0x28, u64::MAX.to_le_bytes()));
    assert!(matches!(error, ElfError::SegmentOverflow { index: 3, memory_size: u64::MAX, .. }));

    let highest = damaged(program_header(0) + 0x18, (u64::MAX - 0x5000).to_le_bytes());
    assert_eq!(KernelImage::parse(&highest).unwrap().end(), u64::MAX);
}

#[test]
fn segments_must_not_overlap() {
    // The one without bytes starts at the end of the data.
    let error = elf_refusal(&damaged(program_header(0) + 0x28, 0x5001_u64.to_le_bytes()));
    assert!(matches!(
        error,
        ElfError::SegmentsOverlap { first_gpa: 0x2a0_0000, first_end: 0x2a0_5001, second_gpa: 0x2a0_5000 }
    ));
    for gpa in [0x100_0000_u64, 0x100_0fff, 0x100_0000 - 0x1fff] {
        let error = elf_refusal(&damaged(program_header(3) + 0x18, gpa.to_le_bytes()));
        assert!(matches!(error, ElfError::SegmentsOverlap { .. }), "{gpa:#x}: {error:?}");
    }
}

#[test]
fn the_entry_must_be_in_executable_bytes() {
    let text_end = 0x100_0000 + kernel_parts()[2].data.len() as u64;
    assert_eq!(KernelImage::parse(&damaged(0x18, (text_end - 1).to_le_bytes())).unwrap().entry(), text_end - 1);
    // Before the code, behind its bytes, in data, in memory without bytes, nowhere, a virtual address.
    for entry in [0xff_ffff, text_end, 0x2a0_0000, 0x2a0_5000, 0, u64::MAX, 0xffff_ffff_8100_0000] {
        let error = elf_refusal(&damaged(0x18, entry.to_le_bytes()));
        assert!(matches!(error, ElfError::Entry { entry: found } if found == entry), "{entry:#x}: {error:?}");
    }
}
