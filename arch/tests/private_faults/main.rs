//! Every function of `private_faults` over its whole domain.

mod oracle;

use arch::x86_64::MemoryLayout;
use arch::x86_64::map::{HIGH_RAM_START, LOW_END, LOW_RAM_LIMIT};
use arch::x86_64::memory_layout::Aliasing;
use arch::x86_64::private_faults::PrivacyBit;
use arch::x86_64::private_faults::tdx::AddressWidth;
use hypervisor::PAGE_SIZE;
use proptest::prelude::*;

/// RAM with and without a part beyond 4 GiB.
const SIZES: [u64; 2] = [512 << 20, LOW_RAM_LIMIT + (1 << 30)];
const HIGH_END: u64 = HIGH_RAM_START + (1 << 30);

/// Any layout.
fn layout() -> impl Strategy<Value = MemoryLayout> {
    let aliasing = prop_oneof![
        1 => Just(Aliasing::SharedOnly),
        4 => Just(Aliasing::OnePerState),
        4 => Just(Aliasing::OneForBoth),
    ];
    (aliasing, prop::sample::select(SIZES.to_vec()))
        .prop_map(|(aliasing, size)| MemoryLayout::with_aliasing(aliasing, size, 48).expect("a size that fits"))
}

/// Any number, most of them near where something begins or ends, some of them with a bit too many.
fn number() -> impl Strategy<Value = u64> {
    let edges = vec![0, LOW_END, 1 << 20, 2 << 20, SIZES[0], LOW_RAM_LIMIT, HIGH_RAM_START, HIGH_END];
    let edge = prop_oneof![4 => prop::sample::select(edges), 1 => (0u32..64).prop_map(|bit| 1 << bit)];
    let tag = prop_oneof![3 => Just(0u64), 1 => (0u32..64).prop_map(|bit| 1 << bit)];
    let unit = prop::sample::select(vec![1i64, PAGE_SIZE as i64]);
    let near = (edge, tag, -3i64..=3, unit)
        .prop_map(|(edge, tag, steps, unit)| (edge | tag).wrapping_add_signed(steps * unit));
    prop_oneof![1 => any::<u64>(), 6 => near, 3 => (0..2 * HIGH_END).prop_map(|gpa| gpa & !(PAGE_SIZE - 1))]
}

/// Any size in bytes, most of them some pages.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![1 => number(), 2 => (0u64..1024).prop_map(|pages| pages * PAGE_SIZE)]
}

fn width() -> impl Strategy<Value = AddressWidth> {
    prop::sample::select(vec![AddressWidth::Bits48, AddressWidth::Bits52])
}

/// Any entry of a buffer of page state changes, most of them sound.
fn entry() -> impl Strategy<Value = u64> {
    let frame = || number().prop_map(|gpa| gpa & 0x000f_ffff_ffff_f000);
    let small = (frame(), 0u64..16, 0u64..3).prop_map(|(frame, operation, done)| frame | operation << 52 | done);
    let large = (frame(), 1u64..3, prop_oneof![Just(0), 0u64..514])
        .prop_map(|(frame, operation, done)| frame >> 21 << 21 | 1 << 56 | operation << 52 | done);
    let plain = (frame(), 1u64..3).prop_map(|(frame, operation)| frame | operation << 52);
    prop_oneof![1 => number(), 2 => small, 4 => large, 8 => plain]
}

/// A buffer: some entries, of which some are followed by their neighbours.
fn entries() -> impl Strategy<Value = Vec<u64>> {
    let run = (entry(), 1u64..4).prop_map(|(entry, count)| {
        let step = if entry >> 56 & 1 == 0 { 1 } else { 512 };
        (0..count).map(move |n| entry.wrapping_add(n * step * PAGE_SIZE) & if n == 0 { !0 } else { !0xfff })
    });
    prop::collection::vec(run, 0..12).prop_map(|runs| runs.into_iter().flatten().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn map_gpa_range(layout in layout(), gpa in number(), pages in size(), attributes: u64) {
        for pages in [pages, pages / PAGE_SIZE] {
            for attributes in [attributes, attributes % 32, (attributes % 32) & !0xc] {
                oracle::map_gpa_range(&layout, gpa, pages, attributes);
            }
        }
    }

    #[test]
    fn tdx_map_gpa(
        layout in layout(), width in width(), r12 in number(), r13 in size(), shared: bool, resume in number(),
    ) {
        let r12 = if shared { r12 ^ 1 << (width.bits() - 1) } else { r12 };
        oracle::tdx_map_gpa(&layout, width, r12, r13, resume);
    }

    #[test]
    fn snp_msr(layout in layout(), value in number(), operation in 0u64..16) {
        oracle::snp_msr(&layout, value);
        oracle::snp_msr(&layout, value & 0x000f_ffff_ffff_f000 | operation << 52 | 0x014);
    }

    #[test]
    fn memory_fault(layout in layout(), flags: u64, gpa in number(), size in size()) {
        for flags in [flags, flags & 8] {
            oracle::memory_fault(&layout, flags, gpa, size);
        }
    }

    #[test]
    fn tagged_access(layout in layout(), c_bit in 12u8..52, width in width(), gpa in number(), size in size()) {
        oracle::tagged_access(&layout, PrivacyBit::c_bit(c_bit).expect("a place for a C-bit"), gpa, size);
        oracle::tagged_access(&layout, PrivacyBit::shared_bit(width), gpa, size);
    }

    #[test]
    fn snp_buffer(layout in layout(), header: u64, entries in entries(), budget in 0usize..64) {
        let count = entries.len() as u64;
        let sound = count.saturating_sub(1) << 16;
        for header in [header, sound, sound | (header % (count + 2))] {
            oracle::snp_buffer(&layout, header, &entries, budget);
        }
    }
}
