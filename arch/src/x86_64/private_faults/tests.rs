//! Layouts to test with, and what refusals say. The properties of every function are in `tests/private_faults`.

use super::tdx::{AddressWidth, MapGpa};
use super::*;
use crate::x86_64::map::{HIGH_RAM_START, LOW_RAM_LIMIT};
use crate::x86_64::{Isolation, MemoryLayout};

/// RAM of [`software`], all of it low.
pub(super) const RAM: u64 = 512 << 20;
/// End of the RAM of [`large`], which goes on beyond 4 GiB.
pub(super) const HIGH_END: u64 = HIGH_RAM_START + (1 << 30);

pub(super) fn software() -> MemoryLayout {
    MemoryLayout::new(Isolation::Software, RAM, 48).unwrap()
}

/// One alias with both backings, as on SEV-SNP and TDX.
pub(super) fn large() -> MemoryLayout {
    MemoryLayout::one_alias(LOW_RAM_LIMIT + (HIGH_END - HIGH_RAM_START), 47).unwrap()
}

pub(super) fn layouts() -> [MemoryLayout; 2] {
    [software(), large()]
}

#[test]
fn refusals_say_what_is_wrong() {
    let refusal = from_map_gpa_range(&software(), 1, 1, 0).unwrap_err();
    assert_eq!(refusal.to_string(), "not a range of pages");
    let refusal = from_map_gpa_range(&software(), RAM, 1, 16).unwrap_err();
    assert_eq!(refusal.to_string(), "0x20000000-0x20001000 is not all RAM");
    let refusal = MapGpa::new(AddressWidth::Bits48, 0x1000, 0).request(&software()).unwrap_err();
    assert_eq!(refusal.to_string(), "0x0 bytes at 0x1000 are no range of either half of a 48-bit address space");
}
