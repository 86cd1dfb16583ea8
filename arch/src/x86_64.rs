//! x86-64 machines.

pub mod acpi;
pub mod boot_params;
pub mod cpuid;
pub mod image;
pub mod isolation;
pub mod launch;
pub mod map;
pub mod memory_layout;
pub mod msr;
mod paging;
pub mod private_faults;

pub use isolation::Isolation;
pub use memory_layout::MemoryLayout;
