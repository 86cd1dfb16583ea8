//! From what a guest, a processor or KVM says to one conversion request, or to a refusal.
//!
//! A page is to change its state when the guest announces it, or when an access contradicts the map: a page is private
//! exactly if it is not user-mappable, and an access whose privateness differs is a request. What says so differs:
//!
//! | who says it | function | origin |
//! |---|---|---|
//! | KVM: hypercall KVM_HC_MAP_GPA_RANGE | [`from_map_gpa_range`] | [`Origin::MapGpaRange`] |
//! | KVM: exit KVM_EXIT_MEMORY_FAULT | [`from_memory_fault`], [`from_memory_fault_flags`] | [`Origin::MemoryFault`] |
//! | a processor: an address with its C-bit or shared bit | [`from_tagged_access`] | [`Origin::MemoryFault`] |
//! | TDX: `TDG.VP.VMCALL<MapGPA>` | [`tdx::MapGpa`] | [`Origin::TdxMapGpa`] |
//! | SEV-SNP: a page state change in a GHCB or its MSR | [`snp::PageStateChange`], [`snp::from_msr`] | [`Origin::SnpPageState`] |
//!
//! KVM itself turns the last two into KVM_HC_MAP_GPA_RANGE. They are here for hypervisors that don't, and say what a
//! guest asked for and is told in the words of its own protocol.
//!
//! Guarantees: total and pure. Any bits give a [`ConversionRequest`] or a typed [`Refusal`], never a panic and never a
//! wrap; bits without a meaning are a refusal, not a guess. A request is exactly what was asked for, by RAM's own
//! addresses, and all of it is RAM. A refusal knows what the guest is told in each protocol. Nothing is decided here that
//! depends on the present state of a page: what is in the wanted state already is left alone where the conversion is made.
//!
//! Cost: a walk over the layout's few ranges. A buffer of page state changes is read once.

mod map_gpa_range;
mod memory_fault;
mod privacy_bit;
mod refusal;
mod request;
pub mod snp;
pub mod tdx;
#[cfg(test)]
mod tests;

pub use map_gpa_range::from_map_gpa_range;
pub use memory_fault::{from_memory_fault, from_memory_fault_flags, from_tagged_access};
pub use privacy_bit::PrivacyBit;
pub use refusal::Refusal;
pub use request::{ConversionKind, ConversionRequest, Origin};
