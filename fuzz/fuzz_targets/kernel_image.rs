//! Loads hostile kernel files.
//!
//! An input is a kernel file as it is. If it is an ELF file, it is also packed into a bzImage, in a compression that its
//! last byte chooses, and must be read from there as it was read plain: so mutations get past checksums.

#![no_main]

#[path = "../../arch/tests/kernel_image/builder.rs"]
#[expect(dead_code, reason = "it makes more than what is needed here")]
mod builder;

use arch::x86_64::image::{ImageError, KernelImage};
use builder::{Packing, bzimage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let plain = KernelImage::parse(file);
    if let Ok(image) = &plain {
        check(image);
    }
    if file.starts_with(b"\x7fELF") {
        let packing = Packing::ALL[usize::from(file[file.len() - 1]) % Packing::ALL.len()];
        let packed = bzimage(&packing.pack(file));
        compare(&plain, &KernelImage::parse(&packed));
    }
});

/// What every kernel that is accepted guarantees.
fn check(image: &KernelImage) {
    let mut end = 0;
    let mut has_entry = false;
    for segment in image.segments() {
        assert!(segment.gpa >= end, "{segment:x?} starts before the end of the one below it, {end:#x}");
        assert!(segment.memory_size > 0 && segment.data.len() as u64 <= segment.memory_size);
        end = segment.gpa.checked_add(segment.memory_size).expect("the segment ends in the address space");
        has_entry |= (segment.gpa..segment.gpa + segment.data.len() as u64).contains(&image.entry());
    }
    assert_eq!(image.end(), end);
    assert!(has_entry, "the entry {:#x} is in no segment", image.entry());
    if let Some(header) = image.setup_header() {
        assert!((0x77..=0x90).contains(&header.len()), "a boot header of {:#x} bytes", header.len());
    }
}

/// A bzImage must hold what went into it, or be refused for the same reason.
fn compare(plain: &Result<KernelImage, ImageError>, packed: &Result<KernelImage, ImageError>) {
    match (plain, packed) {
        (Ok(plain), Ok(packed)) => {
            check(packed);
            assert!(plain.segments().eq(packed.segments()));
            assert_eq!(plain.entry(), packed.entry());
            assert!(plain.setup_header().is_none() && packed.setup_header().is_some());
        }
        (Err(ImageError::Elf(plain)), Err(ImageError::PayloadElf(packed))) => {
            assert_eq!(plain.to_string(), packed.to_string());
        }
        _ => panic!("plain: {plain:?}, packed: {packed:?}"),
    }
}
