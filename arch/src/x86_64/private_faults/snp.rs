//! Page state changes of SEV-SNP guests (AMD publication 56421, "SEV-ES Guest-Hypervisor Communication Block
//! Standardization": "SNP Page State Change").
//!
//! A guest announces one page in the GHCB MSR ([`from_msr`]), or up to [`MAX_ENTRIES`] pages of 4 KiB or 2 MiB in a buffer
//! ([`PageStateChange`]). Frame number and operation lie at the same bits in both. KVM ignores reserved bits; here they
//! are refused.
//!
//! An answer is an error code: in SW_EXITINFO2 for a buffer, whose header then tells the entry that failed, and in the
//! GHCB MSR for a single page. There is no "later": a guest that is told anything but success gives up.

mod page_state_change;

use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use super::{ConversionRequest, Origin, Refusal};
use crate::x86_64::MemoryLayout;

pub use page_state_change::{Batch, MAX_ENTRIES, PageStateChange};

/// SW_EXITINFO2: all entries are done.
pub const DONE: u64 = 0;
/// SW_EXITINFO2: the buffer's header is wrong.
pub const INVALID_HEADER: u64 = 1 << 32 | 1;
/// SW_EXITINFO2: the current entry is wrong.
pub const INVALID_ENTRY: u64 = 1 << 32 | 2;
/// SW_EXITINFO2: the current entry failed for another reason.
pub const GENERIC_ERROR: u64 = 0x100 << 32;

/// The GHCB MSR's answer: the page has the state.
pub const MSR_DONE: u64 = MSR_RESPONSE;
/// The GHCB MSR's answer: an error code that is not zero, in the upper half.
pub const MSR_REFUSED: u64 = 1 << 63 | MSR_RESPONSE;

/// GHCBInfo of a request and of its response.
const MSR_REQUEST: u64 = 0x014;
const MSR_RESPONSE: u64 = 0x015;

/// Bits 51:12: the frame number, in its place in an address.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bits 55:52: the operation.
const OPERATION: u64 = 0xf << 52;

/// What a guest wants done with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// It is to have this state.
    Assign(PageState),
    /// A hint about the size of the processor's own entry for it (PSMASH, UNSMASH).
    Hint,
}

/// The operation in a request or an entry.
fn operation(value: u64) -> Option<Operation> {
    match (value & OPERATION) >> 52 {
        1 => Some(Operation::Assign(PageState::Private)),
        2 => Some(Operation::Assign(PageState::Shared)),
        3 | 4 => Some(Operation::Hint),
        _ => None,
    }
}

/// The request in a value of the GHCB MSR (GHCBInfo 0x014); `None` for what needs nothing done: a shared page where there
/// is no RAM is shared already.
///
/// # Errors
/// A value that is no assignment, or a page that is not RAM.
pub fn from_msr(layout: &MemoryLayout, value: u64) -> Result<Option<ConversionRequest>, Refusal> {
    let known = value & !(FRAME | OPERATION) == MSR_REQUEST;
    match operation(value) {
        Some(Operation::Assign(to)) if known => {
            let range = GpaRange::new(value & FRAME, PAGE_SIZE)?;
            ConversionRequest::announced(layout, range, to, Origin::SnpPageState)
        }
        _ => Err(Refusal::NoPageStateChange { value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::private_faults::tests::large;

    #[test]
    fn the_msr_names_one_page_and_its_state() {
        let ask = |operation: u64, gpa: u64| from_msr(&large(), operation << 52 | gpa | 0x014);
        for (operation, to) in [(1, PageState::Private), (2, PageState::Shared)] {
            let request = ask(operation, 0x20_0000).unwrap().unwrap();
            assert_eq!(request.range, GpaRange::new(0x20_0000, PAGE_SIZE).unwrap());
            assert_eq!((request.to, request.origin), (to, Origin::SnpPageState));
        }
        assert_eq!(ask(2, 0xfee0_0000), Ok(None));
        let hole = GpaRange::new(0xfee0_0000, PAGE_SIZE).unwrap();
        assert_eq!(ask(1, 0xfee0_0000), Err(Refusal::NotRam { range: hole }));
        let last = GpaRange::new(FRAME, PAGE_SIZE).unwrap();
        assert_eq!(ask(1, FRAME), Err(Refusal::NotRam { range: last }));
        assert_eq!((MSR_DONE, MSR_REFUSED), (0x15, 0x8000_0000_0000_0015));
    }

    #[test]
    fn an_msr_value_that_assigns_nothing_is_refused() {
        let layout = large();
        for operation in 0..16 {
            for info in 0..=0xfff {
                let value = operation << 52 | 0x20_0000 | info;
                let assigns = (1..=2).contains(&operation) && info == 0x014;
                assert_eq!(from_msr(&layout, value).is_ok(), assigns, "{value:#x}");
            }
            for reserved in 56..64 {
                let value = 1 << reserved | operation << 52 | 0x20_0014;
                assert_eq!(from_msr(&layout, value), Err(Refusal::NoPageStateChange { value }));
            }
        }
    }
}
