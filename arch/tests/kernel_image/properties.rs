//! Whatever a file says, it is refused, or what it yields can be loaded.

use arch::x86_64::image::KernelImage;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::builder::{EXECUTE, Packing, Part, READ_WRITE, bzimage, elf, kernel};

/// Walks the kernel that was found, if any, as a loader does.
fn check(file: &[u8]) -> Result<(), TestCaseError> {
    let Ok(image) = KernelImage::parse(file) else { return Ok(()) };
    let mut end = 0;
    let mut has_entry = false;
    for segment in image.segments() {
        prop_assert!(segment.gpa >= end);
        prop_assert!(segment.memory_size > 0);
        prop_assert!(segment.data.len() as u64 <= segment.memory_size);
        end = segment.gpa.checked_add(segment.memory_size).expect("the segment ends in the address space");
        has_entry |= (segment.gpa..segment.gpa + segment.data.len() as u64).contains(&image.entry());
    }
    prop_assert_eq!(image.end(), end);
    prop_assert!(has_entry);
    if let Some(header) = image.setup_header() {
        prop_assert!((0x77..=0x90).contains(&header.len()));
    }
    Ok(())
}

fn damage() -> impl Strategy<Value = Vec<(Index, u8)>> {
    vec((any::<Index>(), any::<u8>()), 1..8)
}

fn apply(file: &mut [u8], damage: &[(Index, u8)]) {
    for (index, byte) in damage {
        *index.get_mut(file) = *byte;
    }
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let part = (select(&[EXECUTE, READ_WRITE][..]), 0..0x20_u64, vec(any::<u8>(), 0..64), 0..0x3000_u64);
    vec(part.prop_map(|(flags, page, data, size)| Part::load(flags, page << 12, &data, size)), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bzimages(packing in select(&Packing::ALL[..]), damage in damage()) {
        let mut file = bzimage(&packing.pack(&kernel()));
        apply(&mut file, &damage);
        check(&file)?;
    }

    #[test]
    fn damaged_headers(packing in select(&Packing::ALL[..]), damage in damage()) {
        let mut file = bzimage(&packing.pack(&kernel()));
        apply(&mut file[0x1f1..0x26c], &damage);
        check(&file)?;
    }

    #[test]
    fn damaged_payloads(packing in select(&Packing::ALL[..]), damage in damage()) {
        let mut payload = packing.pack(&kernel());
        apply(&mut payload, &damage);
        check(&bzimage(&payload))?;
    }

    #[test]
    fn damaged_kernels_inside_sound_bzimages(packing in select(&Packing::ALL[..]), damage in damage()) {
        let mut kernel = kernel();
        apply(&mut kernel[..64 + 4 * 56], &damage);
        check(&bzimage(&packing.pack(&kernel)))?;
    }

    #[test]
    fn damaged_kernels(damage in damage()) {
        let mut file = kernel();
        apply(&mut file, &damage);
        check(&file)?;
    }

    #[test]
    fn random_layouts(entry in 0..0x2_0000_u64, parts in parts()) {
        check(&elf(entry, &parts))?;
    }

    #[test]
    fn random_bytes(file in vec(any::<u8>(), 0..2048)) {
        check(&file)?;
    }

    /// A packing changes nothing about which kernels are sound and what they hold.
    #[test]
    fn packing_changes_nothing(entry in 0..0x2_0000_u64, parts in parts(), packing in select(&Packing::ALL[..])) {
        let kernel = elf(entry, &parts);
        let file = bzimage(&packing.pack(&kernel));
        match (KernelImage::parse(&kernel), KernelImage::parse(&file)) {
            (Ok(plain), Ok(packed)) => {
                prop_assert!(plain.segments().eq(packed.segments()));
                prop_assert_eq!(plain.entry(), packed.entry());
            }
            (Err(_), Err(_)) => {}
            (plain, packed) => prop_assert!(false, "plain {plain:?}, packed {packed:?}"),
        }
    }
}
