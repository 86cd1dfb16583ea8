//! What CPUID tells the guest.
//!
//! The host's supported leaves, with the topology of this VM, x2APIC and the TSC deadline timer. `software` adds what
//! makes Linux believe that it is a plain SEV guest: leaf 0x8000001f with the place of the C-bit, and KVM's feature bits
//! for announced conversions.
//!
//! Nested virtualization is hidden: under `software` KVM could not read the control blocks of a nested guest.
//!
//! Sources: AMD's manual volume 3, appendix E; Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use hypervisor::x86_64::CpuidEntry;

use super::MemoryLayout;

const LEAF_FEATURES: u32 = 1;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_EXTENDED_MAX: u32 = 0x8000_0000;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_SVM: u32 = 0x8000_000a;
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

/// Leaf 0x8000001f: EAX bit 1 is SEV; EBX has the C-bit's place in bits 5:0 and the loss of address bits in 11:6.
const MEMORY_ENCRYPTION_SEV: u32 = 1 << 1;
const ADDRESS_BITS_LOST: u32 = 1 << 6;

/// How many bits a guest's physical addresses have on this host.
pub fn address_bits(supported: &[CpuidEntry]) -> u8 {
    // Processors without the leaf have 36 bits.
    supported.iter().find(|entry| entry.function == LEAF_ADDRESS_SIZES).map_or(36, |entry| entry.eax as u8)
}

/// The leaves of processor `id` out of `processors`.
pub fn for_processor(supported: &[CpuidEntry], layout: &MemoryLayout, id: u8, processors: u8) -> Vec<CpuidEntry> {
    let hidden = [LEAF_SVM, LEAF_MEMORY_ENCRYPTION];
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
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => entry.edx = id.into(),
            LEAF_EXTENDED_FEATURES => entry.ecx &= !EXTENDED_ECX_SVM,
            LEAF_ADDRESS_SIZES => entry.ecx = entry.ecx & !0xff | u32::from(processors - 1),
            LEAF_PROCESSOR_TOPOLOGY => entry.eax = id.into(),
            LEAF_EXTENDED_MAX if layout.c_bit().is_some() => entry.eax = entry.eax.max(LEAF_MEMORY_ENCRYPTION),
            LEAF_KVM_FEATURES if layout.c_bit().is_some() => entry.eax |= KVM_ANNOUNCED_CONVERSIONS,
            _ => {}
        }
    }
    if let Some(c_bit) = layout.c_bit() {
        entries.push(CpuidEntry {
            function: LEAF_MEMORY_ENCRYPTION,
            eax: MEMORY_ENCRYPTION_SEV,
            ebx: u32::from(c_bit) | ADDRESS_BITS_LOST,
            ..Default::default()
        });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::Isolation;

    fn host() -> Vec<CpuidEntry> {
        [
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
        assert_eq!((encryption.eax, encryption.ebx), (2, 47 | 1 << 6));
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
}
