//! bzImages with a damaged or hostile payload.

use std::time::{Duration, Instant};

use arch::x86_64::image::{Compression, DecompressError, ElfError, ImageError, KernelImage, MAX_DECOMPRESSED_SIZE};

use crate::builder::{EXECUTE, Packing, Part, bzimage, elf, kernel};
use crate::{messages, refusal};

const COMPRESSED: [Packing; 4] = [Packing::Gzip, Packing::Xz, Packing::Zstd, Packing::Lz4];

fn payload_refusal(payload: &[u8]) -> DecompressError {
    match refusal(&bzimage(payload)) {
        ImageError::Payload(error) => error,
        other => panic!("not refused for its payload, but with {other:?}"),
    }
}

/// A payload that states another size.
fn with_size(mut payload: Vec<u8>, size: u32) -> Vec<u8> {
    let end = payload.len() - 4;
    payload.truncate(end);
    payload.extend(size.to_le_bytes());
    payload
}

#[test]
fn a_truncated_stream_is_refused_even_with_its_size() {
    let kernel = kernel();
    for packing in COMPRESSED {
        let payload = packing.pack(&kernel);
        // With fewer bytes it has no magic.
        for length in 6..payload.len() - 4 {
            let mut short = payload[..length].to_vec();
            short.extend((kernel.len() as u32).to_le_bytes());
            payload_refusal(&short);
        }
    }
}

#[test]
fn a_short_payload_is_refused() {
    for length in 0..4 {
        assert!(
            matches!(payload_refusal(&[0; 4][..length]), DecompressError::TooShort { length: found } if found == length)
        );
    }
}

#[test]
fn a_lie_about_the_size_is_refused() {
    let kernel = kernel();
    let size = kernel.len() as u32;
    for packing in COMPRESSED {
        for declared in [0, 1, size - 1, size + 1, size * 2, MAX_DECOMPRESSED_SIZE as u32] {
            let error = payload_refusal(&with_size(packing.pack(&kernel), declared));
            match (packing, &error) {
                // Decoders that check the size themselves, or stop at the end of their output.
                (Packing::Gzip, DecompressError::Stream { compression: Compression::Gzip, .. })
                | (Packing::Zstd, DecompressError::Stream { compression: Compression::Zstd, .. })
                | (Packing::Lz4, DecompressError::Lz4Block { offset: 4, .. }) => {}
                (_, DecompressError::Longer { .. }) => assert!(declared < size, "{packing:?}: {error:?}"),
                (_, DecompressError::Shorter { actual, .. }) => {
                    assert!(declared > size && *actual == kernel.len(), "{packing:?}: {error:?}");
                }
                _ => panic!("{packing:?}, {declared}: {error:?}"),
            }
        }
        for declared in [MAX_DECOMPRESSED_SIZE as u32 + 1, u32::MAX] {
            let error = payload_refusal(&with_size(packing.pack(&kernel), declared));
            assert!(matches!(error, DecompressError::TooLarge { .. }), "{packing:?}: {error:?}");
        }
    }
}

/// 16 MiB of zeros shrink to some kilobytes in every format. Output stops near the size that the payload states.
#[test]
fn a_bomb_does_not_go_off() {
    let zeros = vec![0; 16 << 20];
    for packing in COMPRESSED {
        let bomb = packing.pack(&zeros);
        assert!(bomb.len() < 1 << 20);
        let error = payload_refusal(&with_size(bomb, 1000));
        match packing {
            Packing::Gzip | Packing::Xz => assert!(matches!(error, DecompressError::Longer { declared: 1000, .. })),
            Packing::Zstd => assert!(matches!(error, DecompressError::Stream { declared: 1000, .. })),
            Packing::Lz4 => assert!(matches!(error, DecompressError::Lz4Block { limit: 1000, .. })),
            Packing::Stored => unreachable!("it is not compressed"),
        }
    }
}

#[test]
fn nothing_may_follow_the_stream() {
    let kernel = kernel();
    for packing in COMPRESSED {
        let mut payload = packing.pack(&kernel);
        let end = payload.len() - 4;
        // Before the size.
        payload.splice(end..end, [0xff; 8]);
        let error = payload_refusal(&payload);
        match packing {
            Packing::Xz => assert!(matches!(error, DecompressError::Trailing { left: 8, .. }), "{error:?}"),
            Packing::Lz4 => assert!(matches!(error, DecompressError::Lz4BlockOutside { left: 4, .. }), "{error:?}"),
            _ => assert!(matches!(error, DecompressError::Stream { .. }), "{error:?}"),
        }
    }
    // A whole member, and then something that looks like a size.
    let mut payload = Packing::Gzip.pack(&kernel);
    payload.extend(b"junk");
    payload.extend((kernel.len() as u32).to_le_bytes());
    assert!(matches!(payload_refusal(&payload), DecompressError::Trailing { left: 8, .. }));
}

#[test]
fn xz_dictionaries_are_limited() {
    let kernel = kernel();
    let pack = |dictionary: u32| {
        use std::io::Write;
        let mut options = lzma_rust2::XzOptions::with_preset(0);
        options.lzma_options.dict_size = dictionary;
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(&kernel).unwrap();
        let mut payload = encoder.finish().unwrap();
        payload.extend((kernel.len() as u32).to_le_bytes());
        payload
    };
    KernelImage::parse(&bzimage(&pack(128 << 20))).unwrap();
    let error = payload_refusal(&pack(192 << 20));
    assert!(matches!(error, DecompressError::Stream { compression: Compression::Xz, .. }), "{error:?}");
}

/// A hundred thousand blocks, of one literal each: no block may cost the eight megabytes that it could have had.
#[test]
fn tiny_lz4_blocks_cost_little() {
    let count = 100_000_u32;
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
    for _ in 0..count {
        payload.extend([2, 0, 0, 0, 0x10, b'x']);
    }
    payload.extend((MAX_DECOMPRESSED_SIZE as u32).to_le_bytes());
    let start = Instant::now();
    let error = payload_refusal(&payload);
    // Clearing 8 MiB so often would take minutes.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(matches!(error, DecompressError::Shorter { actual: 100_000, .. }), "{error:?}");
}

/// Nothing is smaller in lz4 than a run of one byte.
#[test]
fn the_densest_lz4_block_has_room() {
    let kernel = elf(0x100_0000, &[Part::load(EXECUTE, 0x100_0000, &[0; 8 << 20], 8 << 20)]);
    let payload = Packing::Lz4.pack(&kernel);
    assert!(payload.len() < kernel.len() / 250);
    KernelImage::parse(&bzimage(&payload)).unwrap();
}

#[test]
fn lz4_frames_may_be_joined() {
    let kernel = kernel();
    let (first, second) = kernel.split_at(100);
    let frame = |part: &[u8]| {
        let payload = Packing::Lz4.pack(part);
        payload[..payload.len() - 4].to_vec()
    };
    let mut payload = [frame(first), frame(second)].concat();
    payload.extend((kernel.len() as u32).to_le_bytes());
    KernelImage::parse(&bzimage(&payload)).unwrap();
}

#[test]
fn other_compressions_are_named() {
    for (magic, name) in [
        (b"BZh91AY&", "bzip2"),
        (b"\x5d\0\0\x80\0\xff\xff\xff", "lzma"),
        (b"\x89LZO\0\r\n\x1a", "lzo"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7\0", "lz4 (not the legacy frame)"),
    ] {
        let error = payload_refusal(magic);
        assert!(matches!(error, DecompressError::Unsupported { compression } if compression.to_string() == name));
    }
    let error = payload_refusal(b"\xde\xad\xbe\xef\0\0\0\0");
    assert!(matches!(error, DecompressError::Unknown { magic: [0xde, 0xad, 0xbe, 0xef] }));
}

#[test]
fn a_payload_that_is_no_kernel_is_refused() {
    for packing in COMPRESSED {
        let error = refusal(&bzimage(&packing.pack(b"\x7fELF and then nothing")));
        assert!(matches!(error, ImageError::PayloadElf(ElfError::Truncated { length: 21 })), "{error:?}");
        let error = refusal(&bzimage(&packing.pack(&[0; 4096])));
        assert!(matches!(error, ImageError::PayloadElf(ElfError::Magic { found: [0, 0, 0, 0] })), "{error:?}");
        let error = refusal(&bzimage(&packing.pack(b"")));
        assert!(matches!(error, ImageError::PayloadElf(ElfError::Truncated { length: 0 })), "{error:?}");
        assert!(messages(&error).contains("does not hold a kernel"));
    }
}
