//! Benchmarks of the memory core: `cargo lab bench` runs them all where they belong.
//!
//! [`access`] compares a device's guarded accesses with vm-memory's own, which check nothing but the bounds; [`map`]
//! measures the attribute map for 1 TiB of RAM; both need no guest. [`conversion`] compares conversions with the bare
//! system calls, and needs a KVM with private memory; [`boot`] boots guests, and compares with QEMU; [`io`] and [`footprint`]
//! look at what the lab measured in guests. What is compared runs in turns in one process, so that whatever else
//! the machine does meets both; figures are medians, with the middle half of the measurements beside them. [`targets`] are
//! what they should keep to; a target that is missed is said, and fails nothing.

pub mod access;
pub mod boot;
pub mod conversion;
pub mod figures;
pub mod footprint;
pub mod io;
pub mod map;
pub mod numbers;
pub mod report;
pub mod targets;

pub use figures::{Figures, Sample};
