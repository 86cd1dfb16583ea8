//! The address bit by which a processor tells a private access from a shared one.
//!
//! AMD's is the C-bit: set is private, and CPUID Fn8000_001F[EBX] says where it is (AMD64 Architecture Programmer's
//! Manual volume 2, "Secure Encrypted Virtualization"). TDX's is the shared bit: set is shared, and it is the highest bit
//! of the guest's addresses, 47 or 51 (Linux `arch/x86/kvm/vmx/tdx.c`, TDX_SHARED_BIT_PWL_4 and TDX_SHARED_BIT_PWL_5).

use hypervisor::PageState;

use super::tdx::AddressWidth;

/// The bit of a guest physical address that tells whether an access is private.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrivacyBit {
    mask: u64,
    set: PageState,
}

impl PrivacyBit {
    /// AMD's C-bit at this place; `None` if it would not be above the bits in a page and below bit 52.
    pub fn c_bit(bit: u8) -> Option<Self> {
        (12..52).contains(&bit).then(|| Self { mask: 1 << bit, set: PageState::Private })
    }

    /// TDX's shared bit.
    pub fn shared_bit(width: AddressWidth) -> Self {
        Self { mask: 1 << (width.bits() - 1), set: PageState::Shared }
    }

    /// The address without the bit, and what the bit says.
    pub fn split(self, gpa: u64) -> (u64, PageState) {
        (gpa & !self.mask, if gpa & self.mask != 0 { self.set } else { self.set.other() })
    }

    /// The address with the bit as the state wants it.
    pub fn join(self, gpa: u64, state: PageState) -> u64 {
        if state == self.set { gpa | self.mask } else { gpa & !self.mask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_bit_says_what_its_processor_means_by_it() {
        let c_bit = PrivacyBit::c_bit(51).unwrap();
        assert_eq!(c_bit.split(1 << 51 | 0x1000), (0x1000, PageState::Private));
        assert_eq!(c_bit.split(0x1000), (0x1000, PageState::Shared));
        for (width, bit) in [(AddressWidth::Bits48, 47), (AddressWidth::Bits52, 51)] {
            let shared_bit = PrivacyBit::shared_bit(width);
            assert_eq!(shared_bit.split(1 << bit | 0x1000), (0x1000, PageState::Shared));
            assert_eq!(shared_bit.split(0x1000), (0x1000, PageState::Private));
        }
    }

    #[test]
    fn a_c_bit_is_no_part_of_an_offset_and_no_bit_that_addresses_lack() {
        for bit in 0..=u8::MAX {
            assert_eq!(PrivacyBit::c_bit(bit).is_some(), (12..=51).contains(&bit), "{bit}");
        }
    }

    proptest! {
        #[test]
        fn joining_undoes_splitting(gpa: u64, c_bit in 12u8..52) {
            for bit in [
                PrivacyBit::c_bit(c_bit).unwrap(),
                PrivacyBit::shared_bit(AddressWidth::Bits48),
                PrivacyBit::shared_bit(AddressWidth::Bits52),
            ] {
                let (own, state) = bit.split(gpa);
                prop_assert_eq!(bit.join(own, state), gpa);
                prop_assert_eq!(bit.split(bit.join(own, state.other())), (own, state.other()));
            }
        }
    }
}
