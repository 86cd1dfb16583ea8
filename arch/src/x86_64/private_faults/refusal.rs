//! Why there is no request in what was said, and what the guest is told of it in each protocol.

use hypervisor::{GpaRange, MapGpaRange, MapGpaRangeReply, RangeError, VmType};

use super::{snp, tdx};

/// Why there is no request in what the guest said. The guest gets an error and runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The numbers are no range of pages.
    #[error("not a range of pages")]
    Range(#[from] RangeError),
    /// Part of the range is not RAM.
    #[error("{range} is not all RAM")]
    NotRam {
        /// The range.
        range: GpaRange,
    },
    /// The guest sees the range at an alias whose attribute is fixed: no conversion resolves a fault there.
    #[error("{range} has one state for good at the alias that was accessed")]
    Fixed {
        /// The range, by the addresses that were accessed.
        range: GpaRange,
    },
    /// Nothing converts under this isolation.
    #[error("memory does not convert with isolation=none")]
    NoConversions,
    /// KVM_HC_MAP_GPA_RANGE: attribute bits are set that mean nothing.
    #[error("unknown attribute bits in {attributes:#x}")]
    UnknownBits {
        /// The whole word.
        attributes: u64,
    },
    /// KVM_EXIT_MEMORY_FAULT: flags are set that mean nothing.
    #[error("unknown flags of a memory fault in {flags:#x}")]
    UnknownFlags {
        /// The whole word.
        flags: u64,
    },
    /// TDX: the range wraps, ends beyond the guest's addresses, or begins private and ends shared.
    #[error("{size:#x} bytes at {start:#x} are no range of either half of a {bits}-bit address space")]
    BeyondAddresses {
        /// First address, shared bit included.
        start: u64,
        /// Size in bytes.
        size: u64,
        /// Width of the guest's addresses.
        bits: u8,
    },
    /// SEV-SNP: the GHCB MSR holds no page state change.
    #[error("the GHCB MSR's value {value:#x} is no page state change")]
    NoPageStateChange {
        /// The whole value.
        value: u64,
    },
    /// SEV-SNP: the buffer's header is wrong.
    #[error("bad header {header:#x} of page state changes")]
    BadHeader {
        /// The whole header.
        header: u64,
    },
    /// SEV-SNP: an entry of the buffer is wrong.
    #[error("bad page state change {entry:#x} in entry {index}")]
    BadEntry {
        /// Which entry.
        index: u16,
        /// The whole entry.
        entry: u64,
    },
}

impl Refusal {
    /// KVM_HC_MAP_GPA_RANGE: the hypercall's return value. KVM takes `EINVAL` from VMMs of SEV-SNP and TDX guests and
    /// passes on to other guests what it gets, where its own refusal is `-EINVAL`. It is never `EAGAIN`, which SEV-SNP
    /// has no word for.
    pub fn hypercall_return(&self, vm_type: VmType) -> u64 {
        let mut refused = 0;
        MapGpaRange::new(0, 0, 0, vm_type.is_plain(), &mut refused).reply(MapGpaRangeReply::Invalid);
        refused
    }

    /// TDX: the status of `TDG.VP.VMCALL<MapGPA>`, in R10.
    pub fn tdx_status(&self) -> u64 {
        match self {
            Self::Range(RangeError::Unaligned { .. }) => tdx::ALIGN_ERROR,
            _ => tdx::INVALID_OPERAND,
        }
    }

    /// SEV-SNP: SW_EXITINFO2 of a GHCB's page state changes. The buffer's header says which entry it is about.
    pub fn snp_exit_info_2(&self) -> u64 {
        match self {
            Self::BadHeader { .. } => snp::INVALID_HEADER,
            Self::BadEntry { .. } => snp::INVALID_ENTRY,
            _ => snp::GENERIC_ERROR,
        }
    }

    /// SEV-SNP: the answer in the GHCB MSR.
    pub fn snp_msr(&self) -> u64 {
        snp::MSR_REFUSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vm_type_gets_the_return_value_that_kvm_takes_for_it() {
        for vm_type in VmType::ALL {
            let expected = match vm_type {
                VmType::SevSnp | VmType::Tdx => 22,
                VmType::Default | VmType::SwProtected | VmType::Sev | VmType::SevEs => -22,
            };
            assert_eq!(Refusal::NoConversions.hypercall_return(vm_type) as i64, expected, "{vm_type}");
        }
    }

    #[test]
    fn no_protocol_takes_a_refusal_for_success() {
        let range = GpaRange::new(0, 4096).unwrap();
        for refusal in [
            Refusal::Range(RangeError::Empty { start: 0 }),
            Refusal::Range(RangeError::Unaligned { start: 1, size: 1 }),
            Refusal::Range(RangeError::TooLarge { start: 0, size: u64::MAX }),
            Refusal::NotRam { range },
            Refusal::Fixed { range },
            Refusal::NoConversions,
            Refusal::UnknownBits { attributes: 0 },
            Refusal::UnknownFlags { flags: 0 },
            Refusal::BeyondAddresses { start: 0, size: 0, bits: 48 },
            Refusal::NoPageStateChange { value: 0 },
            Refusal::BadHeader { header: 0 },
            Refusal::BadEntry { index: 0, entry: 0 },
        ] {
            let aligned = !matches!(refusal, Refusal::Range(RangeError::Unaligned { .. }));
            let status = if aligned { 0x8000_0000_0000_0000 } else { 0x8000_0000_0000_0002 };
            assert_eq!(refusal.tdx_status(), status, "{refusal}");
            let upper = match refusal {
                Refusal::BadHeader { .. } | Refusal::BadEntry { .. } => 1,
                _ => 0x100,
            };
            assert_eq!(refusal.snp_exit_info_2() >> 32, upper, "{refusal}");
            assert_eq!(refusal.snp_msr(), 0x8000_0000_0000_0015, "{refusal}");
        }
    }
}
