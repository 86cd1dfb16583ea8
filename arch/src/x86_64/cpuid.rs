//! What CPUID tells the guest.
//!
//! The host's supported leaves, with the topology of this VM (one package, one thread a core), x2APIC and the TSC deadline
//! timer. `software` adds what
//! makes Linux believe that it is a plain SEV guest: leaf 0x8000001f with the place of the C-bit, and KVM's feature bits
//! for announced conversions.
//!
//! Nested virtualization is hidden: under `software` KVM could not read the control blocks of a nested guest.
//!
//! Sources: AMD's manual volume 3, appendix E; Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use hypervisor::x86_64::CpuidEntry;

use super::MemoryLayout;

const LEAF_MAX: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_EXTENDED_MAX: u32 = 0x8000_0000;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_SVM: u32 = 0x8000_000a;
const LEAF_EXTENDED_CACHES: u32 = 0x8000_001d;
const LEAF_PROCESSOR_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_MEMORY_ENCRYPTION: u32 = 0x8000_001f;

const ECX_VMX: u32 = 1 << 5;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
const EXTENDED_ECX_SVM: u32 = 1 << 2;

/// `KVM_FEATURE_HC_MAP_GPA_RANGE` and `KVM_FEATURE_MIGRATION_CONTROL`: Linux announces pages only with both.
const KVM_ANNOUNCED_CONVERSIONS: u32 = 1 << 16 | 1 << 17;

/// Leaf 0x8000001f: EAX bit 1 is SEV, and bit 10 says that caches need no flush when a page changes its state (here they never
/// do); EBX has the C-bit's place in bits 5:0 and the loss of address bits in 11:6.
const MEMORY_ENCRYPTION_SEV: u32 = 1 << 1;
const MEMORY_ENCRYPTION_COHERENT: u32 = 1 << 10;
const ADDRESS_BITS_LOST: u32 = 1 << 6;

/// How many bits a guest's physical addresses have on this host.
pub fn address_bits(supported: &[CpuidEntry]) -> u8 {
    // Processors without the leaf have 36 bits.
    supported.iter().find(|entry| entry.function == LEAF_ADDRESS_SIZES).map_or(36, |entry| entry.eax as u8)
}

/// The leaves of processor `id` out of `processors`.
pub fn for_processor(supported: &[CpuidEntry], layout: &MemoryLayout, id: u8, processors: u8) -> Vec<CpuidEntry> {
    let hidden = [LEAF_SVM, LEAF_MEMORY_ENCRYPTION, LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2];
    // How many bits of an APIC id number the cores of the package.
    let core_bits = u32::from(processors).next_power_of_two().trailing_zeros();
    let mut entries: Vec<CpuidEntry> =
        supported.iter().filter(|entry| !hidden.contains(&entry.function)).copied().collect();
    for entry in &mut entries {
        match entry.function {
            LEAF_FEATURES => {
                entry.ebx = entry.ebx & 0xffff | u32::from(processors) << 16 | u32::from(id) << 24;
                entry.ecx = entry.ecx & !ECX_VMX | ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
                if processors > 1 {
                    entry.edx |= EDX_HYPER_THREADING;
                }
            }
            LEAF_CACHES | LEAF_EXTENDED_CACHES => {
                // Sharers of the cache less one in bits 25:14. The last level is everybody's, the others are a core's own.
                // Leaf 4 has the cores of the package less one in bits 31:26.
                const SHARERS: u32 = 0xfff << 14;
                const CORES: u32 = 0x3f << 26;
                let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 7);
                if kind != 0 {
                    let sharers = if level >= 3 { (1 << core_bits) - 1 } else { 0 };
                    entry.eax = entry.eax & !SHARERS | sharers << 14;
                    if entry.function == LEAF_CACHES {
                        entry.eax = entry.eax & !CORES | ((1 << core_bits) - 1u32).min(0x3f) << 26;
                    }
                }
            }
            LEAF_EXTENDED_FEATURES => entry.ecx &= !EXTENDED_ECX_SVM,
            // Bits of an APIC id in 15:12, processors less one in 7:0.
            LEAF_ADDRESS_SIZES => entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | u32::from(processors - 1),
            // APIC id; core id and threads of a core less one; node id and nodes of the package less one.
            LEAF_PROCESSOR_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id.into(), id.into(), 0),
            LEAF_EXTENDED_MAX if layout.c_bit().is_some() => entry.eax = entry.eax.max(LEAF_MEMORY_ENCRYPTION),
            LEAF_KVM_FEATURES if layout.c_bit().is_some() => entry.eax |= KVM_ANNOUNCED_CONVERSIONS,
            _ => {}
        }
    }
    if supported.iter().any(|entry| entry.function == LEAF_MAX && entry.eax >= LEAF_TOPOLOGY) {
        entries.extend(topology(id, processors, core_bits));
    }
    if let Some(c_bit) = layout.c_bit() {
        entries.push(CpuidEntry {
            function: LEAF_MEMORY_ENCRYPTION,
            eax: MEMORY_ENCRYPTION_SEV | MEMORY_ENCRYPTION_COHERENT,
            ebx: u32::from(c_bit) | ADDRESS_BITS_LOST,
            ..Default::default()
        });
    }
    entries
}

/// Leaf 0xb: a level of threads, one of cores, and the end.
fn topology(id: u8, processors: u8, core_bits: u32) -> [CpuidEntry; 3] {
    /// The leaf depends on ECX (Linux `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
    const BY_INDEX: u32 = 1;
    // Type in bits 15:8 of ECX, level in 7:0; how many bits of the APIC id number what is below the next level in EAX; how
    // many processors there are at this level in EBX.
    let level = |index, kind: u32, bits, count| CpuidEntry {
        function: LEAF_TOPOLOGY,
        index,
        flags: BY_INDEX,
        eax: bits,
        ebx: count,
        ecx: kind << 8 | index,
        edx: id.into(),
        ..Default::default()
    };
    [level(0, 1, 0, 1), level(1, 2, core_bits, processors.into()), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::Isolation;

    fn host() -> Vec<CpuidEntry> {
        [
            (LEAF_MAX, 0x10, 0, 0, 0),
            (LEAF_TOPOLOGY, 0, 0, 0, 77),
            (LEAF_EXTENDED_CACHES, 7 << 14 | 3 << 5 | 3, 0, 0, 0),
            (LEAF_PROCESSOR_TOPOLOGY, 9, 0x109, 0x3, 0),
            (LEAF_FEATURES, 0, 0x1234_5678, ECX_VMX, 0),
            (LEAF_KVM_FEATURES, 1, 0, 0, 0),
            (LEAF_EXTENDED_MAX, 0x8000_001e, 0, 0, 0),
            (LEAF_EXTENDED_FEATURES, 0, 0, EXTENDED_ECX_SVM, 0),
            (LEAF_ADDRESS_SIZES, 0x3030, 0, 0, 0),
            (LEAF_SVM, 1, 2, 3, 4),
            (LEAF_MEMORY_ENCRYPTION, 0xffff, 0xffff, 0, 0),
        ]
        .map(|(function, eax, ebx, ecx, edx)| CpuidEntry { function, eax, ebx, ecx, edx, ..Default::default() })
        .to_vec()
    }

    fn leaf(entries: &[CpuidEntry], function: u32) -> Option<CpuidEntry> {
        let mut found = entries.iter().filter(|entry| entry.function == function);
        let entry = found.next().copied();
        assert!(found.next().is_none(), "leaf {function:#x} stands twice");
        entry
    }

    #[test]
    fn a_software_isolated_guest_believes_in_sev() {
        let layout = MemoryLayout::new(Isolation::Software, 1 << 30, address_bits(&host())).unwrap();
        let entries = for_processor(&host(), &layout, 0, 1);
        let encryption = leaf(&entries, LEAF_MEMORY_ENCRYPTION).unwrap();
        assert_eq!((encryption.eax, encryption.ebx), (1 << 10 | 2, 47 | 1 << 6));
        assert_eq!(leaf(&entries, LEAF_EXTENDED_MAX).unwrap().eax, LEAF_MEMORY_ENCRYPTION);
        assert_eq!(leaf(&entries, LEAF_KVM_FEATURES).unwrap().eax, 1 | KVM_ANNOUNCED_CONVERSIONS);
    }

    #[test]
    fn an_ordinary_guest_does_not_and_neither_can_nest() {
        let layout = MemoryLayout::new(Isolation::None, 1 << 30, 48).unwrap();
        let entries = for_processor(&host(), &layout, 3, 4);
        assert!(leaf(&entries, LEAF_MEMORY_ENCRYPTION).is_none() && leaf(&entries, LEAF_SVM).is_none());
        assert_eq!(leaf(&entries, LEAF_KVM_FEATURES).unwrap().eax, 1);
        let features = leaf(&entries, LEAF_FEATURES).unwrap();
        assert_eq!(features.ebx, 3 << 24 | 4 << 16 | 0x5678);
        assert_eq!(features.ecx & (ECX_VMX | ECX_X2APIC), ECX_X2APIC);
    }

    #[test]
    fn every_processor_is_a_core_of_its_own_in_one_package() {
        let layout = MemoryLayout::new(Isolation::None, 1 << 30, 48).unwrap();
        for (processors, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (255, 8)] {
            for id in [0, processors - 1] {
                let entries = for_processor(&host(), &layout, id, processors);
                let levels: Vec<_> = entries
                    .iter()
                    .filter(|entry| entry.function == LEAF_TOPOLOGY)
                    .map(|entry| (entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx))
                    .collect();
                let (count, edx) = (u32::from(processors), u32::from(id));
                let expected = [(0, 1, 0, 1, 0x100, edx), (1, 1, bits, count, 0x201, edx), (2, 1, 0, 0, 2, edx)];
                assert_eq!(levels, expected);
                let core = leaf(&entries, LEAF_PROCESSOR_TOPOLOGY).unwrap();
                assert_eq!((core.eax, core.ebx, core.ecx), (edx, edx, 0));
                assert_eq!(leaf(&entries, LEAF_ADDRESS_SIZES).unwrap().ecx, bits << 12 | (count - 1));
                let last_level = leaf(&entries, LEAF_EXTENDED_CACHES).unwrap();
                assert_eq!(last_level.eax >> 14 & 0xfff, (1 << bits) - 1);
            }
        }
    }
}
