//! Benchmarks of the memory core that need no guest.
//!
//! [`access`] compares a device's guarded accesses with vm-memory's own, which check nothing but the bounds; [`map`]
//! measures the attribute map for 1 TiB of RAM. What is compared runs in turns in one process, so that whatever else the
//! machine does meets both; figures are medians, with the quartiles beside them. [`limits`] are what they have to keep
//! to.

pub mod access;
pub mod figures;
pub mod limits;
pub mod map;
pub mod numbers;

pub use figures::{Figures, Sample};
