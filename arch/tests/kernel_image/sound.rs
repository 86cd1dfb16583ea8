//! Sound kernels, in every packing.

use arch::x86_64::image::{KernelImage, Segment};

use crate::builder::{EXECUTE, HEADER_END, Packing, Part, bzimage, elf, kernel, kernel_parts, put};

#[test]
fn a_vmlinux_is_read_as_it_is() {
    let file = kernel();
    let image = KernelImage::parse(&file).unwrap();
    let parts = kernel_parts();
    let segment =
        |part: usize| Segment { gpa: parts[part].gpa, data: &parts[part].data, memory_size: parts[part].memory_size };
    assert_eq!(image.segments().collect::<Vec<_>>(), [segment(2), segment(0), segment(3)]);
    assert_eq!(image.entry(), 0x100_0005);
    assert_eq!(image.end(), 0x2a0_7000);
    assert_eq!(image.segments().last().unwrap().end(), image.end());
    assert_eq!(image.setup_header(), None);
}

#[test]
fn every_packing_holds_the_same_kernel() {
    let kernel = kernel();
    let plain = KernelImage::parse(&kernel).unwrap();
    for packing in Packing::ALL {
        let file = bzimage(&packing.pack(&kernel));
        let image = KernelImage::parse(&file).unwrap_or_else(|error| panic!("{packing:?}: {error:?}"));
        assert!(image.segments().eq(plain.segments()), "{packing:?}");
        assert_eq!(image.entry(), plain.entry());
        assert_eq!(image.end(), plain.end());
        assert_eq!(image.setup_header(), Some(&file[0x1f1..HEADER_END]));
    }
}

/// Several blocks of lz4 and zstd, a dictionary of xz that wraps around, and offsets that the filter for x86 code changes.
#[test]
fn kernels_of_some_size_survive_packing() {
    let mut state = 1_u32;
    let text: Vec<u8> = (0..9 << 20)
        .map(|i: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Calls with small offsets, among bytes that repeat now and then.
            match i % 8 {
                0 => 0xe8,
                1 | 2 => (state >> 24) as u8,
                3 | 4 => 0,
                _ => (i >> 10) as u8,
            }
        })
        .collect();
    let kernel = elf(0x100_0000, &[Part::load(EXECUTE, 0x100_0000, &text, text.len() as u64)]);
    for packing in Packing::ALL {
        let file = bzimage(&packing.pack(&kernel));
        let image = KernelImage::parse(&file).unwrap_or_else(|error| panic!("{packing:?}: {error:?}"));
        assert!(image.segments().next().unwrap().data == text, "{packing:?}");
    }
}

#[test]
fn zero_setup_sectors_mean_four() {
    let image = bzimage(&Packing::Zstd.pack(&kernel()));
    let mut file = image[..1024].to_vec();
    put(&mut file, 0x1f1, [0]);
    file.resize(5 * 512, 0);
    file.extend(&image[1024..]);
    KernelImage::parse(&file).unwrap();
}

#[test]
fn the_setup_header_ends_where_its_jump_says() {
    let mut file = bzimage(&Packing::Gzip.pack(&kernel()));
    for end in [0x268, 0x26c, 0x281] {
        put(&mut file, 0x201, [(end - 0x202) as u8]);
        assert_eq!(KernelImage::parse(&file).unwrap().setup_header(), Some(&file[0x1f1..end]));
    }
}

#[test]
fn more_may_follow_the_payload() {
    let mut file = bzimage(&Packing::Lz4.pack(&kernel()));
    file.extend(b"the code that decompresses, and a signature");
    KernelImage::parse(&file).unwrap();
}

/// Linux's build appends relocations to the kernel before it compresses both.
#[test]
fn more_may_follow_the_elf_file_in_the_payload() {
    let mut kernel = kernel();
    kernel.extend([0; 100]);
    KernelImage::parse(&bzimage(&Packing::Xz.pack(&kernel))).unwrap();
}
