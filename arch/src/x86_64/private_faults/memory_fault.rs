//! Accesses that contradict the map: KVM_EXIT_MEMORY_FAULT, and addresses that still carry their privacy bit.

use hypervisor::{GpaRange, MemoryFault, PageState, RangeError};

use super::{ConversionRequest, Origin, PrivacyBit, Refusal};
use crate::x86_64::MemoryLayout;
use crate::x86_64::memory_layout::{Alias, AttributeRule};

/// `KVM_MEMORY_EXIT_FLAG_PRIVATE` (Linux `include/uapi/linux/kvm.h`), the only flag there is.
const PRIVATE: u64 = 1 << 3;

/// The request in the raw fields of KVM_EXIT_MEMORY_FAULT.
///
/// # Errors
/// As [`from_memory_fault`], and flags that mean nothing: what a later kernel says by them can't be guessed.
pub fn from_memory_fault_flags(
    layout: &MemoryLayout,
    flags: u64,
    gpa: u64,
    size: u64,
) -> Result<ConversionRequest, Refusal> {
    if flags & !PRIVATE != 0 {
        return Err(Refusal::UnknownFlags { flags });
    }
    from_memory_fault(layout, MemoryFault { gpa, size, private: flags & PRIVATE != 0 })
}

/// The request in an access to an address with its privacy bit, as a processor's own exit (SEV-SNP: #NPF, TDX: EPT
/// violation) has it.
///
/// # Errors
/// As [`from_memory_fault`].
pub fn from_tagged_access(
    layout: &MemoryLayout,
    bit: PrivacyBit,
    gpa: u64,
    size: u64,
) -> Result<ConversionRequest, Refusal> {
    let (gpa, state) = bit.split(gpa);
    from_memory_fault(layout, MemoryFault { gpa, size, private: state == PageState::Private })
}

/// The request in a memory fault: the pages that were accessed, in the state in which the access finds memory.
///
/// On an alias with both backings that is the access's own privateness. On one with a single backing it is that backing's
/// state: with `software`, KVM calls any access to a private page's shared alias private, because the attribute is, and
/// the alias has no private memory.
///
/// # Errors
/// An access to what is not RAM, or to an alias whose attribute is fixed: no conversion resolves either.
pub fn from_memory_fault(layout: &MemoryLayout, fault: MemoryFault) -> Result<ConversionRequest, Refusal> {
    let accessed = pages_of(fault)?;
    let (ram, alias, own) = layout.locate(accessed.start()).ok_or(Refusal::NotRam { range: accessed })?;
    let range = GpaRange::new(own, accessed.len())?;
    let to = wanted(alias, fault.private).ok_or(Refusal::Fixed { range: accessed })?;
    // An access lies in one slot.
    if !ram.gpa.covers(range) {
        return Err(Refusal::NotRam { range: accessed });
    }
    Ok(ConversionRequest::new(range, to, Origin::MemoryFault))
}

/// The pages that hold the bytes of the access.
fn pages_of(fault: MemoryFault) -> Result<GpaRange, RangeError> {
    let MemoryFault { gpa: start, size, .. } = fault;
    let last = size.checked_sub(1).ok_or(RangeError::Empty { start })?;
    let last = start.checked_add(last).ok_or(RangeError::TooLarge { start, size })?;
    let (first, last) = (GpaRange::page_of(start)?, GpaRange::page_of(last)?);
    GpaRange::new(first.start(), last.end() - first.start())
}

/// The state in which an access to this alias finds memory; `None` if its attribute does not change.
fn wanted(alias: Alias, private: bool) -> Option<PageState> {
    match (alias.attribute, alias.shared, alias.private) {
        (AttributeRule::Fixed(_), ..) | (_, false, false) => None,
        (_, true, false) => Some(PageState::Shared),
        (_, false, true) => Some(PageState::Private),
        (_, true, true) if private => Some(PageState::Private),
        (_, true, true) => Some(PageState::Shared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::map::{HIGH_RAM_START, LOW_END, LOW_RAM_LIMIT};
    use crate::x86_64::private_faults::ConversionKind;
    use crate::x86_64::private_faults::tdx::AddressWidth;
    use crate::x86_64::private_faults::tests::{HIGH_END, RAM, large, layouts, software};
    use hypervisor::PAGE_SIZE;

    fn range(start: u64, size: u64) -> GpaRange {
        GpaRange::new(start, size).unwrap()
    }

    #[test]
    fn a_touch_of_the_shared_alias_asks_for_shared_and_one_of_the_private_alias_for_nothing() {
        let layout = software();
        let fault = |gpa| from_memory_fault(&layout, MemoryFault { gpa, size: PAGE_SIZE, private: true });
        let request = fault(0x20_0000).unwrap();
        assert_eq!((request.range, request.to), (range(0x20_0000, PAGE_SIZE), PageState::Shared));
        assert_eq!((request.kind, request.origin), (ConversionKind::Implicit, Origin::MemoryFault));
        let alias = 1 << 47 | 0x20_0000;
        assert_eq!(fault(alias), Err(Refusal::Fixed { range: range(alias, PAGE_SIZE) }));
        assert_eq!(fault(0x1000), Err(Refusal::Fixed { range: range(0x1000, PAGE_SIZE) }));
        assert_eq!(fault(RAM), Err(Refusal::NotRam { range: range(RAM, PAGE_SIZE) }));
    }

    #[test]
    fn with_both_backings_the_access_says_which_it_wants() {
        let layout = large();
        for gpa in [0, LOW_END, LOW_RAM_LIMIT - PAGE_SIZE, HIGH_RAM_START, HIGH_END - PAGE_SIZE] {
            for (private, to) in [(true, PageState::Private), (false, PageState::Shared)] {
                let request = from_memory_fault(&layout, MemoryFault { gpa, size: PAGE_SIZE, private }).unwrap();
                assert_eq!((request.range, request.to), (range(gpa, PAGE_SIZE), to));
            }
        }
    }

    #[test]
    fn the_request_is_the_pages_that_hold_the_access() {
        let layout = large();
        let pages = |gpa, size| from_memory_fault_flags(&layout, 0, gpa, size).map(|request| request.range);
        assert_eq!(pages(0x20_0123, 1), Ok(range(0x20_0000, PAGE_SIZE)));
        assert_eq!(pages(0x20_0fff, 2), Ok(range(0x20_0000, 2 * PAGE_SIZE)));
        assert_eq!(pages(0x20_0000, 2 << 20), Ok(range(0x20_0000, 2 << 20)));
        assert_eq!(pages(0x20_0000, 0), Err(Refusal::Range(RangeError::Empty { start: 0x20_0000 })));
        assert_eq!(pages(u64::MAX, 2), Err(Refusal::Range(RangeError::TooLarge { start: u64::MAX, size: 2 })));
        let out = LOW_RAM_LIMIT - PAGE_SIZE;
        assert_eq!(pages(out, PAGE_SIZE + 1), Err(Refusal::NotRam { range: range(out, 2 * PAGE_SIZE) }));
    }

    #[test]
    fn an_access_that_only_begins_where_the_state_changes_is_refused() {
        let layout = software();
        // The page below is always open; the page above follows the state.
        let across = |gpa, size| from_memory_fault_flags(&layout, PRIVATE, gpa, size);
        let start = LOW_END - PAGE_SIZE;
        assert_eq!(across(start, 2 * PAGE_SIZE), Err(Refusal::Fixed { range: range(start, 2 * PAGE_SIZE) }));
        assert!(across(LOW_END, 2 * PAGE_SIZE).is_ok());
    }

    #[test]
    fn every_flag_but_private_is_refused() {
        for layout in layouts() {
            let ask = |flags| from_memory_fault_flags(&layout, flags, 0x20_0000, PAGE_SIZE);
            for low in 0..1u64 << 10 {
                for flags in [low].into_iter().chain((10..64).map(|bit| low | 1 << bit)) {
                    match flags {
                        0 | 8 => assert_eq!(
                            ask(flags),
                            from_memory_fault(
                                &layout,
                                MemoryFault { gpa: 0x20_0000, size: PAGE_SIZE, private: flags == 8 }
                            )
                        ),
                        _ => assert_eq!(ask(flags), Err(Refusal::UnknownFlags { flags })),
                    }
                }
            }
        }
    }

    #[test]
    fn a_privacy_bit_says_the_state_and_is_no_part_of_the_address() {
        let layout = large();
        let c_bit = PrivacyBit::c_bit(51).unwrap();
        let shared_bit = PrivacyBit::shared_bit(AddressWidth::Bits52);
        let (plain, tagged) = (0x20_0000, 1 << 51 | 0x20_0000);
        for (bit, gpa, to) in [
            (c_bit, plain, PageState::Shared),
            (c_bit, tagged, PageState::Private),
            (shared_bit, plain, PageState::Private),
            (shared_bit, tagged, PageState::Shared),
        ] {
            let request = from_tagged_access(&layout, bit, gpa, PAGE_SIZE).unwrap();
            assert_eq!((request.range, request.to), (range(plain, PAGE_SIZE), to));
        }
        let other = 1 << 47 | 0x20_0000;
        let refusal = Err(Refusal::NotRam { range: range(other, PAGE_SIZE) });
        assert_eq!(from_tagged_access(&layout, c_bit, other, PAGE_SIZE), refusal);
    }
}
