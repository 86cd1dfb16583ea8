//! `TDG.VP.VMCALL<MapGPA>` of TDX guests (the section of that name in Intel's TDX
//! Guest-Host-Communication Interface).
//!
//! The guest names a range by the address of its first byte, in R12, and its size, in R13. The address carries the shared
//! bit, the highest one of the guest's address width: set asks for shared, clear for private. The answer is a status in
//! R10; with anything but success, R11 holds the address, shared bit included, from which on nothing was done.
//!
//! Which status a wrong call gets is checked in KVM's order: what is no range of the guest's addresses is an invalid
//! operand, also if it is unaligned; what is only unaligned is an alignment error.

use hypervisor::GpaRange;

use super::{ConversionRequest, Origin, PrivacyBit, Refusal};
use crate::x86_64::MemoryLayout;

/// Status: all of it is done.
pub const SUCCESS: u64 = 0;
/// Status: the guest is to ask again, from the address in R11 on.
pub const RETRY: u64 = 1;
/// Status: an operand is invalid.
pub const INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
/// Status: address or size is not a multiple of 4 KiB.
pub const ALIGN_ERROR: u64 = 0x8000_0000_0000_0002;

/// How wide the guest's physical addresses are, shared bit included (GPAW).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressWidth {
    /// Four-level page tables; the shared bit is 47.
    Bits48,
    /// Five-level page tables; the shared bit is 51.
    Bits52,
}

impl AddressWidth {
    /// The number of bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::Bits48 => 48,
            Self::Bits52 => 52,
        }
    }
}

/// One call, as the guest made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapGpa {
    width: AddressWidth,
    start: u64,
    size: u64,
}

/// The answer to a call, in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub r10: u64,
    /// The address from which on nothing was done; 0 with success.
    pub r11: u64,
}

impl MapGpa {
    /// The call with these registers, by a guest with addresses of this width.
    pub fn new(width: AddressWidth, r12: u64, r13: u64) -> Self {
        Self { width, start: r12, size: r13 }
    }

    /// The request in it; `None` for what needs nothing done: a shared range where there is no RAM is shared already.
    ///
    /// # Errors
    /// Registers that are no whole range of RAM.
    pub fn request(&self, layout: &MemoryLayout) -> Result<Option<ConversionRequest>, Refusal> {
        let &Self { width, start, size } = self;
        let beyond = Refusal::BeyondAddresses { start, size, bits: width.bits() };
        let last = size.checked_sub(1).and_then(|rest| start.checked_add(rest)).ok_or(beyond)?;
        let bit = PrivacyBit::shared_bit(width);
        let ((own, to), (_, to_at_end)) = (bit.split(start), bit.split(last));
        if last >> width.bits() != 0 || to != to_at_end {
            return Err(beyond);
        }
        let range = GpaRange::new(own, size)?;
        ConversionRequest::announced(layout, range, to, Origin::TdxMapGpa)
    }

    /// The answer when all of it is done.
    pub fn done(&self) -> Answer {
        Answer { r10: SUCCESS, r11: 0 }
    }

    /// The answer to a refusal: nothing was done.
    pub fn refused(&self, refusal: &Refusal) -> Answer {
        Answer { r10: refusal.tdx_status(), r11: self.start }
    }

    /// The answer when a conversion failed at `gpa`, one of RAM's own addresses: what lies before it is done.
    pub fn failed_at(&self, gpa: u64) -> Answer {
        Answer { r10: INVALID_OPERAND, r11: self.resume_at(gpa) }
    }

    /// The answer when the guest is to go on by itself at `gpa`, one of RAM's own addresses: what lies before it is done.
    pub fn retry_at(&self, gpa: u64) -> Answer {
        Answer { r10: RETRY, r11: self.resume_at(gpa) }
    }

    /// The address as the guest says it; the first one of the call for any that is not in it.
    fn resume_at(&self, gpa: u64) -> u64 {
        let bit = PrivacyBit::shared_bit(self.width);
        let gpa = bit.join(gpa, bit.split(self.start).1);
        if gpa.checked_sub(self.start).is_some_and(|done| done < self.size) { gpa } else { self.start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::map::{HIGH_RAM_START, LOW_RAM_LIMIT};
    use crate::x86_64::private_faults::tests::{HIGH_END, large};
    use hypervisor::{PAGE_SIZE, PageState};
    use proptest::prelude::*;

    const WIDTHS: [AddressWidth; 2] = [AddressWidth::Bits48, AddressWidth::Bits52];

    fn shared(width: AddressWidth) -> u64 {
        1 << (width.bits() - 1)
    }

    #[test]
    fn the_shared_bit_is_stripped_and_says_the_state() {
        for width in WIDTHS {
            for (start, to) in [(0x20_0000, PageState::Private), (shared(width) | 0x20_0000, PageState::Shared)] {
                let call = MapGpa::new(width, start, 2 * PAGE_SIZE);
                let request = call.request(&large()).unwrap().unwrap();
                assert_eq!(request.range, GpaRange::new(0x20_0000, 2 * PAGE_SIZE).unwrap());
                assert_eq!((request.to, request.origin), (to, Origin::TdxMapGpa));
                assert_eq!(call.done(), Answer { r10: 0, r11: 0 });
            }
        }
        // The other width's shared bit is an address.
        assert!(MapGpa::new(AddressWidth::Bits52, 1 << 47 | 0x20_0000, PAGE_SIZE).request(&large()).is_err());
    }

    #[test]
    fn a_hole_is_shared_already_and_never_becomes_private() {
        for width in WIDTHS {
            assert_eq!(MapGpa::new(width, shared(width) | 0xfee0_0000, PAGE_SIZE).request(&large()), Ok(None));
            let private = MapGpa::new(width, 0xfee0_0000, PAGE_SIZE);
            let refusal = private.request(&large()).unwrap_err();
            assert_eq!(private.refused(&refusal), Answer { r10: INVALID_OPERAND, r11: 0xfee0_0000 });
        }
    }

    #[test]
    fn wrong_calls_get_the_status_that_kvm_gives_them() {
        for width in WIDTHS {
            let (half, end) = (shared(width), 2 * shared(width));
            for (r12, r13, status) in [
                (0x20_0000, 0, INVALID_OPERAND),
                (0x20_0001, 0, INVALID_OPERAND),
                (!0xfff, 2 * PAGE_SIZE, INVALID_OPERAND),
                (u64::MAX, u64::MAX, INVALID_OPERAND),
                (end, PAGE_SIZE, INVALID_OPERAND),
                (end - PAGE_SIZE, 2 * PAGE_SIZE, INVALID_OPERAND),
                (half - PAGE_SIZE, 2 * PAGE_SIZE, INVALID_OPERAND),
                (half - PAGE_SIZE, PAGE_SIZE + 1, INVALID_OPERAND),
                (1 << 63 | 0x20_0000, PAGE_SIZE, INVALID_OPERAND),
                (0x20_0001, PAGE_SIZE, ALIGN_ERROR),
                (0x20_0000, 1, ALIGN_ERROR),
                (half | 0x20_0800, 0x800, ALIGN_ERROR),
                (LOW_RAM_LIMIT - PAGE_SIZE, 2 * PAGE_SIZE, INVALID_OPERAND),
                (half | (LOW_RAM_LIMIT - PAGE_SIZE), 2 * PAGE_SIZE, INVALID_OPERAND),
                (HIGH_END, PAGE_SIZE, INVALID_OPERAND),
            ] {
                let call = MapGpa::new(width, r12, r13);
                let refusal = call.request(&large()).unwrap_err();
                assert_eq!(call.refused(&refusal), Answer { r10: status, r11: r12 }, "{r12:#x} {r13:#x}: {refusal}");
            }
        }
    }

    #[test]
    fn the_guest_goes_on_by_its_own_addresses() {
        for width in WIDTHS {
            for tag in [0, shared(width)] {
                let call = MapGpa::new(width, tag | HIGH_RAM_START, 4 * PAGE_SIZE);
                let next = HIGH_RAM_START + 3 * PAGE_SIZE;
                assert_eq!(call.retry_at(next), Answer { r10: 1, r11: tag | next });
                assert_eq!(call.failed_at(next), Answer { r10: INVALID_OPERAND, r11: tag | next });
                for stray in [0, HIGH_RAM_START - 1, HIGH_RAM_START + 4 * PAGE_SIZE, u64::MAX] {
                    assert_eq!(call.retry_at(stray), Answer { r10: 1, r11: tag | HIGH_RAM_START });
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_answer_names_an_address_of_the_call(r12: u64, r13: u64, gpa: u64, wide: bool) {
            let width = if wide { AddressWidth::Bits52 } else { AddressWidth::Bits48 };
            let call = MapGpa::new(width, r12, r13);
            for answer in [call.retry_at(gpa), call.failed_at(gpa)] {
                prop_assert!(answer.r11 == r12 || answer.r11 - r12 < r13);
            }
        }
    }
}
