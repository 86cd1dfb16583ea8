//! Files that are something else.

use arch::x86_64::image::{Compression, Foreign, ImageError};

use crate::builder::put;
use crate::{messages, refusal};

/// A file of 4 KiB with some bytes set.
fn file(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; 4096];
    for (offset, bytes) in parts {
        file[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    file
}

#[test]
fn nothing_and_next_to_nothing() {
    assert!(matches!(refusal(b""), ImageError::Empty));
    assert!(matches!(refusal(b"\x7f"), ImageError::TooShort { length: 1 }));
    assert!(matches!(refusal(b"hello"), ImageError::TooShort { length: 5 }));
}

#[test]
fn known_files_are_named() {
    let pe = |machine: &'static [u8]| file(&[(0, b"MZ"), (0x3c, b"\x80\0\0\0"), (0x80, b"PE\0\0"), (0x84, machine)]);
    let cases = [
        (file(&[(0, b"MZ\0\0zimg")]), Foreign::EfiZboot),
        (file(&[(0, b"MZ"), (0x38, b"ARM\x64")]), Foreign::Arm64Image),
        (file(&[(0x38, b"ARM\x64")]), Foreign::Arm64Image),
        (file(&[(0, b"MZ"), (0x38, b"RSC\x05")]), Foreign::RiscvImage),
        (pe(b"\x64\x86"), Foreign::Pe { machine: Some(0x8664) }),
        (file(&[(0, b"MZ")]), Foreign::Pe { machine: None }),
        (file(&[(0, b"MZ"), (0x3c, b"\xff\xff\xff\xff")]), Foreign::Pe { machine: None }),
        (file(&[(0, b"\x1f\x8b\x08")]), Foreign::Compressed { compression: Compression::Gzip }),
        (file(&[(0, b"\x28\xb5\x2f\xfd")]), Foreign::Compressed { compression: Compression::Zstd }),
        (file(&[(0, b"\xfd7zXZ\0")]), Foreign::Compressed { compression: Compression::Xz }),
        (file(&[(0, b"\x27\x05\x19\x56")]), Foreign::UImage),
        (file(&[(0, b"070701")]), Foreign::Cpio),
        (file(&[(0, b"!<arch>\n")]), Foreign::Ar),
        (file(&[(0, b"#!/bin/sh\n")]), Foreign::Script),
        (file(&[(0x1fe, b"\x55\xaa")]), Foreign::BootSector),
    ];
    for (file, expected) in cases {
        let error = refusal(&file);
        assert!(matches!(error, ImageError::Foreign { found } if found == expected), "{expected:?}: {error:?}");
        assert!(messages(&error).ends_with("pass an x86-64 Linux vmlinuz (bzImage) or vmlinux"), "{error}");
    }
}

#[test]
fn unknown_files_are_quoted() {
    let mut file = file(&[]);
    put(&mut file, 0, *b"What");
    let error = refusal(&file);
    assert!(matches!(error, ImageError::Unknown { magic } if magic == *b"What"));
    assert!(messages(&error).contains("[57, 68, 61, 74]"), "{error}");
}
