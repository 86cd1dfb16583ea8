//! From what a guest or a fault says to one conversion request, or to a refusal.
//!
//! Total and pure: any bits give a request or a typed refusal, never a panic and never a wrap. Nothing is decided here
//! that depends on the present state of a page.

use hypervisor::{GpaRange, MemoryFault, PAGE_SIZE, PageState, RangeError};

use super::MemoryLayout;
use super::memory_layout::AttributeRule;

/// `KVM_MAP_GPA_RANGE_ENCRYPTED` (Linux `include/uapi/linux/kvm_para.h`).
const ENCRYPTED: u64 = 1 << 4;
/// The size hint, and the largest one there is: 1 GiB.
const SIZE_HINT: u64 = 0xf;
const SIZE_HINT_MAX: u64 = 2;

/// What brought a conversion about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConversionKind {
    /// The guest announced it.
    Explicit,
    /// An access contradicted the map.
    Implicit,
    /// The operator or the VMM asked for it.
    Host,
}

/// A change of state that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversionRequest {
    /// The range, by RAM's own addresses (no alias). All of it is RAM.
    pub range: GpaRange,
    /// The state it is to have.
    pub to: PageState,
    /// What brought it about.
    pub kind: ConversionKind,
}

/// Why there is no request in what the guest said. The guest gets an error and runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The numbers are no range of pages.
    #[error("not a range of pages")]
    Range(#[from] RangeError),
    /// Reserved bits of the attributes are set.
    #[error("unknown attribute bits in {attributes:#x}")]
    UnknownBits {
        /// The whole word.
        attributes: u64,
    },
    /// Part of the range is not RAM.
    #[error("{range} is not all RAM")]
    NotRam {
        /// The range.
        range: GpaRange,
    },
    /// Nothing converts under this isolation.
    #[error("memory does not convert with isolation=none")]
    NoConversions,
}

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
    if !layout.converts() {
        return Err(Refusal::NoConversions);
    }
    let to = if attributes & ENCRYPTED != 0 { PageState::Private } else { PageState::Shared };
    let ram: u64 = layout.split(range).map(|(_, part)| part.len()).sum();
    match ram {
        0 if to == PageState::Shared => Ok(None),
        ram if ram == range.len() => Ok(Some(ConversionRequest { range, to, kind: ConversionKind::Explicit })),
        _ => Err(Refusal::NotRam { range }),
    }
}

/// The request in a memory fault; `None` if no conversion can resolve it.
///
/// On an alias that follows the state of its pages, the access wants the state in which the alias has memory for it.
/// With `software` that is "shared" on the shared alias: KVM calls the access private there because the attribute is,
/// and the alias has no private memory.
pub fn from_memory_fault(layout: &MemoryLayout, fault: MemoryFault) -> Option<ConversionRequest> {
    let (_, alias, own) = layout.locate(fault.gpa)?;
    if alias.attribute != AttributeRule::Follows {
        return None;
    }
    let to = match (alias.shared, alias.private) {
        (true, false) => PageState::Shared,
        (false, true) => PageState::Private,
        _ if fault.private => PageState::Private,
        _ => PageState::Shared,
    };
    Some(ConversionRequest { range: GpaRange::page_of(own).ok()?, to, kind: ConversionKind::Implicit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::Isolation;
    use proptest::prelude::*;

    const RAM: u64 = 512 << 20;

    fn layout() -> MemoryLayout {
        MemoryLayout::new(Isolation::Software, RAM, 48).unwrap()
    }

    #[test]
    fn hostile_arguments_are_refused() {
        let layout = layout();
        let ask = |gpa, pages, attributes| from_map_gpa_range(&layout, gpa, pages, attributes);
        let unknown = |attributes| Err(Refusal::UnknownBits { attributes });
        assert_eq!(ask(0x10_0000, 1, ENCRYPTED | 1 << 5), unknown(ENCRYPTED | 1 << 5));
        assert_eq!(ask(0x10_0000, 1, 1 << 63), unknown(1 << 63));
        assert_eq!(ask(0x10_0000, 1, 3), unknown(3));
        for (gpa, pages) in [
            (0x10_0001, 1),               // unaligned
            (0x10_0000, 0),               // no pages
            (0x10_0000, 1 << 52),         // bytes overflow
            (0x10_0000, (1 << 52) - 1),   // end overflows
            (!0xfff, 1),                  // last page
            (0x10_0000, (RAM >> 12) + 1), // beyond RAM
            (RAM - PAGE_SIZE, 2),         // one in, one out
            (1 << 47, 1),                 // the private alias itself
        ] {
            for attributes in [0, ENCRYPTED] {
                let answer = ask(gpa, pages, attributes);
                let harmless = matches!(answer, Ok(None)) && attributes == 0;
                assert!(answer.is_err() || harmless, "{gpa:#x} {pages:#x} {attributes:#x}: {answer:?}");
            }
        }
    }

    #[test]
    fn a_hole_is_shared_already_and_never_becomes_private() {
        let layout = layout();
        assert_eq!(from_map_gpa_range(&layout, 0xfee0_0000, 1, 0), Ok(None));
        assert!(from_map_gpa_range(&layout, 0xfee0_0000, 1, ENCRYPTED).is_err());
    }

    #[test]
    fn size_hints_are_not_states() {
        let layout = layout();
        for hint in 0..=SIZE_HINT_MAX {
            let to = |attributes| from_map_gpa_range(&layout, 0x20_0000, 512, attributes).unwrap().unwrap().to;
            assert_eq!(to(hint), PageState::Shared);
            assert_eq!(to(hint | ENCRYPTED), PageState::Private);
        }
    }

    #[test]
    fn a_touch_of_the_shared_alias_asks_for_shared_and_one_of_the_private_alias_for_nothing() {
        let layout = layout();
        let fault = |gpa| MemoryFault { gpa, size: PAGE_SIZE, private: true };
        let request = from_memory_fault(&layout, fault(0x20_0123)).unwrap();
        assert_eq!((request.range.start(), request.range.len(), request.to), (0x20_0000, PAGE_SIZE, PageState::Shared));
        assert_eq!(from_memory_fault(&layout, fault(1 << 47 | 0x20_0000)), None);
        assert_eq!(from_memory_fault(&layout, fault(0x1000)), None);
        assert_eq!(from_memory_fault(&layout, fault(RAM)), None);
    }

    proptest! {
        #[test]
        fn any_arguments_give_a_range_of_ram_or_nothing(gpa: u64, pages: u64, attributes: u64) {
            let layout = layout();
            // Random words hardly ever make a range, so fold some of them to where they do.
            for (gpa, pages, attributes) in [
                (gpa, pages, attributes),
                ((gpa % (2 * RAM)) & !0xfff, pages % ((2 * RAM) >> 12), attributes & 0x1f),
            ] {
                if let Ok(Some(request)) = from_map_gpa_range(&layout, gpa, pages, attributes) {
                    prop_assert!(request.range.end() <= RAM);
                    prop_assert_eq!(request.range.start(), gpa);
                    prop_assert_eq!(request.range.pages(), pages);
                }
            }
        }

        #[test]
        fn any_fault_is_a_page_of_ram_or_nothing(gpa: u64, private: bool) {
            let layout = layout();
            for gpa in [gpa, gpa % (2 * RAM)] {
                if let Some(request) = from_memory_fault(&layout, MemoryFault { gpa, size: PAGE_SIZE, private }) {
                    prop_assert_eq!(request.range.pages(), 1);
                    prop_assert!(request.range.end() <= RAM);
                }
            }
        }
    }
}
