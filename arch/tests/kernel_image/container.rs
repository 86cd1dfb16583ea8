//! bzImages with a damaged boot header, or of another kernel.

use arch::x86_64::image::{BzImageError, ImageError};

use crate::builder::{PAYLOAD_START, Packing, bzimage, kernel, put};
use crate::{messages, refusal};

fn container_refusal(file: &[u8]) -> BzImageError {
    match refusal(file) {
        ImageError::BzImage(error) => error,
        other => panic!("not refused as a bzImage, but with {other:?}"),
    }
}

/// A sound bzImage with some bytes overwritten.
fn damaged<const N: usize>(offset: usize, bytes: [u8; N]) -> Vec<u8> {
    let mut file = bzimage(&Packing::Gzip.pack(&kernel()));
    put(&mut file, offset, bytes);
    file
}

#[test]
fn every_truncation_is_refused() {
    for packing in Packing::ALL {
        let file = bzimage(&packing.pack(&kernel()));
        for length in 0..file.len() {
            let error = refusal(&file[..length]);
            match length {
                0 => assert!(matches!(error, ImageError::Empty)),
                1 => assert!(matches!(error, ImageError::TooShort { length: 1 })),
                2..0x206 => assert!(matches!(error, ImageError::Foreign { .. }), "{length}: {error:?}"),
                0x206..0x26c => {
                    assert!(matches!(error, ImageError::BzImage(BzImageError::Truncated { .. })), "{length}: {error:?}")
                }
                _ => assert!(
                    matches!(error, ImageError::BzImage(BzImageError::PayloadOutside { .. })),
                    "{length}: {error:?}"
                ),
            }
        }
    }
}

#[test]
fn a_boot_flag_is_needed() {
    assert!(matches!(container_refusal(&damaged(0x1fe, [0x55, 0xab])), BzImageError::BootFlag { found: 0xab55 }));
}

#[test]
fn old_protocols_are_refused() {
    let error = container_refusal(&damaged(0x206, 0x020b_u16.to_le_bytes()));
    assert!(matches!(error, BzImageError::Version { found: 0x020b }));
    assert!(error.to_string().contains("is 2.11, and 2.12 is needed"), "{error}");
}

#[test]
fn thirty_two_bit_kernels_are_refused() {
    let error = container_refusal(&damaged(0x236, 0x007e_u16.to_le_bytes()));
    assert!(matches!(error, BzImageError::Not64Bit { xloadflags: 0x7e }));
    assert!(error.to_string().contains("32-bit kernel"), "{error}");
}

#[test]
fn the_header_has_a_length_that_can_be() {
    for jump in [0, 1, 0x65, 0x80, 0xff] {
        let error = container_refusal(&damaged(0x201, [jump]));
        let expected = 0x202 + usize::from(jump);
        assert!(matches!(error, BzImageError::HeaderLength { end } if end == expected), "{error:?}");
    }
}

#[test]
fn the_payload_must_be_in_the_file() {
    let length = bzimage(&Packing::Gzip.pack(&kernel())).len();
    let payload_length = (length - PAYLOAD_START) as u32;
    for (offset, value) in
        [(0x248, 0x41), (0x248, u32::MAX), (0x248, 0x8000_0000), (0x24c, payload_length + 1), (0x24c, u32::MAX)]
    {
        let error = container_refusal(&damaged(offset, value.to_le_bytes()));
        assert!(matches!(error, BzImageError::PayloadOutside { .. }), "{error:?}");
    }
    for sectors in [0, 2, 255] {
        let error = container_refusal(&damaged(0x1f1, [sectors]));
        assert!(matches!(error, BzImageError::PayloadOutside { .. }), "{error:?}");
    }
}

#[test]
fn the_chain_of_an_error_names_values_and_remedy() {
    let found = messages(&refusal(&damaged(0x236, [0, 0])));
    assert_eq!(
        found,
        "the kernel image is a bzImage that can't be booted: it is a 32-bit kernel (bit 0 of xloadflags 0x0000 at 0x236 \
         is clear): pass an x86-64 kernel"
    );
}
