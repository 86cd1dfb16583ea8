//! What makes an access a private one, for each type of VM.

use crate::{PageState, VmType};

/// Where a guest's access goes, with all that its processor says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Guest physical address; of a TDX guest, with the bit that makes it a shared one.
    pub gpa: u64,
    /// The C-bit of the guest's page tables. It counts in SEV-SNP guests.
    pub c_bit: bool,
}

impl From<u64> for Address {
    /// Without the C-bit.
    fn from(gpa: u64) -> Self {
        Self { gpa, c_bit: false }
    }
}

impl Address {
    /// So many bytes further on.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Self { gpa: self.gpa.wrapping_add(bytes as u64), ..self }
    }
}

/// The rule of one VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Privateness {
    pub(super) vm_type: VmType,
    pub(super) tdx_shared_bit: u32,
}

impl Privateness {
    /// The page's own address, and whether the access is a shared or a private one.
    pub(super) fn of(self, address: Address, attribute: impl FnOnce(u64) -> PageState) -> (u64, PageState) {
        let gpa = address.gpa;
        match self.vm_type {
            VmType::Default | VmType::Sev | VmType::SevEs => (gpa, PageState::Shared),
            VmType::SwProtected => (gpa, attribute(gpa)),
            VmType::SevSnp if address.c_bit => (gpa, PageState::Private),
            VmType::SevSnp => (gpa, PageState::Shared),
            VmType::Tdx => self.of_tdx(gpa),
        }
    }

    /// The same of a TDX guest's address.
    pub(super) fn of_tdx(self, gpa: u64) -> (u64, PageState) {
        let shared = self.shared_bit();
        let state = if gpa & shared != 0 { PageState::Shared } else { PageState::Private };
        (gpa & !shared, state)
    }

    /// How a guest of this VM makes an access of this kind, as far as it has a choice.
    pub(super) fn address(self, gpa: u64, access: PageState) -> Address {
        match (self.vm_type, access) {
            (VmType::SevSnp, PageState::Private) => Address { gpa, c_bit: true },
            (VmType::Tdx, PageState::Shared) => (gpa | self.shared_bit()).into(),
            _ => gpa.into(),
        }
    }

    fn shared_bit(self) -> u64 {
        1u64.checked_shl(self.tdx_shared_bit).unwrap_or(0)
    }

    /// Whether VMs of this type take private memory at all.
    pub(super) fn has_private_memory(self) -> bool {
        match self.vm_type {
            VmType::Default | VmType::Sev | VmType::SevEs => false,
            VmType::SwProtected | VmType::SevSnp | VmType::Tdx => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PageState::{Private, Shared};

    #[test]
    fn each_type_has_its_own_rule() {
        const GPA: u64 = 0x1234_5000;
        let rule = |vm_type| Privateness { vm_type, tdx_shared_bit: 47 };
        for attribute in [Shared, Private] {
            for c_bit in [false, true] {
                let access = |vm_type, gpa| rule(vm_type).of(Address { gpa, c_bit }, |_| attribute);
                for vm_type in [VmType::Default, VmType::Sev, VmType::SevEs] {
                    assert_eq!(access(vm_type, GPA), (GPA, Shared));
                }
                assert_eq!(access(VmType::SwProtected, GPA), (GPA, attribute));
                assert_eq!(access(VmType::SevSnp, GPA), (GPA, if c_bit { Private } else { Shared }));
                assert_eq!(access(VmType::Tdx, GPA), (GPA, Private));
                assert_eq!(access(VmType::Tdx, GPA | 1 << 47), (GPA, Shared));
                assert_eq!(access(VmType::Tdx, GPA | 1 << 51), (GPA | 1 << 51, Private));
            }
        }
    }

    #[test]
    fn an_address_made_for_an_access_is_that_access() {
        for vm_type in [VmType::SevSnp, VmType::Tdx] {
            let rule = Privateness { vm_type, tdx_shared_bit: 51 };
            for access in [Shared, Private] {
                assert_eq!(rule.of(rule.address(0x5000, access), |_| unreachable!()), (0x5000, access));
            }
        }
    }
}
