//! Hypervisor abstraction for user-unmappable guest memory.
//!
//! Three object-safe traits, [`Hypervisor`], [`Vm`] and [`Vcpu`], say what a VMM needs of a hypervisor whose guests have
//! private memory: RAM that no process in host user space can map. [`kvm`] implements them on Linux, [`model`] inside this
//! process, for tests; [`faults`] makes either fail on order.
//!
//! How it works: a guest page is *shared* (user-mappable) or *private* (user-unmappable), see [`PageState`]. A
//! [`Region`] gives a range of guest addresses up to two backings, [`SharedMemory`] and [`GuestMemfd`]; the attribute
//! set by [`Vm::set_attribute`] chooses between them page by page. What the guest asks of the VMM leaves [`Vcpu::run`]
//! as a typed [`Exit`] with a typed reply; nothing is converted inside `run`.
//!
//! Guarantees: descriptors are owned and close on exec; a region keeps its backings alive as long as the guest can
//! reach them; a reply that the VMM forgets is a refusal, never a grant and never stale memory.

pub mod backing;
mod byte_size;
pub mod caps;
mod error;
mod exit;
pub mod faults;
pub mod kvm;
pub mod model;
pub mod observed;
mod range;
mod traits;

pub use backing::{Backing, GuestMemfd, Region, SharedMemory, Slice};
pub use byte_size::ByteSize;
pub use caps::{Capability, MemoryCaps, VmType};
pub use error::{AttributeError, Error, PreFaultError, Result};
pub use exit::{Exit, MapGpaRange, MapGpaRangeReply, MemoryFault, MsrRead};
pub use range::{GpaRange, PAGE_SIZE, PageState, RangeError};
pub use traits::{Hypervisor, INTERRUPT_PINS, Interrupter, MAX_GSI, MsiRoute, MsrFilter, Vcpu, Vm};

/// The x86 register structures of the KVM ABI, which the traits use as they are.
pub mod x86_64 {
    pub use kvm_bindings::{
        kvm_cpuid_entry2 as CpuidEntry, kvm_msr_entry as MsrEntry, kvm_regs as Registers, kvm_segment as Segment,
        kvm_sregs as SpecialRegisters,
    };
}
