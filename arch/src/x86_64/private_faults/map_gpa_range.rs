//! The arguments of the hypercall KVM_HC_MAP_GPA_RANGE (Linux `Documentation/virt/kvm/x86/hypercalls.rst`).

use hypervisor::{GpaRange, PAGE_SIZE, PageState, RangeError};

use super::{ConversionRequest, Origin, Refusal};
use crate::x86_64::MemoryLayout;

/// `KVM_MAP_GPA_RANGE_ENCRYPTED` (Linux `arch/x86/include/uapi/asm/kvm_para.h`).
const ENCRYPTED: u64 = 1 << 4;
/// The size hint, and the largest one there is: 1 GiB.
const SIZE_HINT: u64 = 0xf;
const SIZE_HINT_MAX: u64 = 2;

/// The request in the arguments of KVM_HC_MAP_GPA_RANGE; `None` for what needs nothing done: a shared range where there
/// is no RAM is shared already.
///
/// # Errors
/// Arguments that are no whole range of RAM, or bits that mean nothing.
pub fn from_map_gpa_range(
    layout: &MemoryLayout,
    gpa: u64,
    pages: u64,
    attributes: u64,
) -> Result<Option<ConversionRequest>, Refusal> {
    if attributes & !(ENCRYPTED | SIZE_HINT) != 0 || attributes & SIZE_HINT > SIZE_HINT_MAX {
        return Err(Refusal::UnknownBits { attributes });
    }
    let size = pages.checked_mul(PAGE_SIZE).ok_or(RangeError::TooLarge { start: gpa, size: u64::MAX })?;
    let range = GpaRange::new(gpa, size)?;
    let to = if attributes & ENCRYPTED != 0 { PageState::Private } else { PageState::Shared };
    ConversionRequest::announced(layout, range, to, Origin::MapGpaRange)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::Isolation;
    use crate::x86_64::private_faults::tests::{RAM, layouts, software};

    #[test]
    fn hostile_arguments_are_refused() {
        let layout = software();
        let ask = |gpa, pages, attributes| from_map_gpa_range(&layout, gpa, pages, attributes);
        let too_large = |start, size| Err(Refusal::Range(RangeError::TooLarge { start, size }));
        let not_ram = |start, pages| Err(Refusal::NotRam { range: GpaRange::new(start, pages * PAGE_SIZE).unwrap() });
        for (gpa, pages, expected) in [
            (0x10_0001, 1, Err(Refusal::Range(RangeError::Unaligned { start: 0x10_0001, size: PAGE_SIZE }))),
            (0x10_0000, 0, Err(Refusal::Range(RangeError::Empty { start: 0x10_0000 }))),
            (0x10_0000, 1 << 52, too_large(0x10_0000, u64::MAX)), // bytes overflow
            (0x10_0000, (1 << 52) - 1, too_large(0x10_0000, !0xfff)), // end overflows
            (!0xfff, 1, too_large(!0xfff, PAGE_SIZE)),            // last page
            (RAM - PAGE_SIZE, 2, not_ram(RAM - PAGE_SIZE, 2)),    // one in, one out
            (0, (RAM >> 12) + 1, not_ram(0, (RAM >> 12) + 1)),    // beyond RAM
        ] {
            for attributes in [0, ENCRYPTED] {
                assert_eq!(ask(gpa, pages, attributes), expected, "{gpa:#x} {pages:#x} {attributes:#x}");
            }
        }
        // The private alias itself.
        assert_eq!(ask(1 << 47, 1, ENCRYPTED), not_ram(1 << 47, 1));
    }

    #[test]
    fn every_attribute_bit_means_what_the_kernel_says_or_is_refused() {
        for layout in layouts() {
            // All words of the defined bits and one more, and every single higher bit with each of them.
            for low in 0..1u64 << 6 {
                for attributes in [low].into_iter().chain((6..64).map(|bit| low | 1 << bit)) {
                    let answer = from_map_gpa_range(&layout, 0x20_0000, 512, attributes);
                    let hint = attributes % 16;
                    if attributes < 32 && hint <= 2 {
                        let request = answer.unwrap().unwrap();
                        let to = if attributes >= 16 { PageState::Private } else { PageState::Shared };
                        assert_eq!((request.to, request.origin), (to, Origin::MapGpaRange), "{attributes:#x}");
                    } else {
                        assert_eq!(answer, Err(Refusal::UnknownBits { attributes }));
                    }
                }
            }
        }
    }

    #[test]
    fn a_hole_is_shared_already_and_never_becomes_private() {
        for layout in layouts() {
            assert_eq!(from_map_gpa_range(&layout, 0xfee0_0000, 1, 0), Ok(None));
            assert!(from_map_gpa_range(&layout, 0xfee0_0000, 1, ENCRYPTED).is_err());
        }
    }

    #[test]
    fn nothing_converts_without_isolation() {
        let layout = MemoryLayout::new(Isolation::None, RAM, 48).unwrap();
        for attributes in [0, ENCRYPTED] {
            assert_eq!(from_map_gpa_range(&layout, 0x10_0000, 1, attributes), Err(Refusal::NoConversions));
        }
    }
}
