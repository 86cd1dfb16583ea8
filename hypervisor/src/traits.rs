//! What a VMM needs of a hypervisor: three object-safe traits.
//!
//! The rules that an implementation keeps and a VMM may lean on stand in the methods' docs; the contract tests in
//! `tests/kvm` check them on real KVM.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::x86_64::{CpuidEntry, Registers, SpecialRegisters};
use crate::{Backing, Exit, GpaRange, GuestMemfd, MemoryCaps, PageState, Region, Result, VmType};

/// The host's hypervisor.
pub trait Hypervisor: Send + Sync {
    /// What it can do with guest memory. Probed once.
    fn caps(&self) -> &MemoryCaps;

    /// The CPUID leaves that it can give a guest.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>>;

    /// Creates an empty VM of this type.
    ///
    /// # Errors
    /// A type that [`MemoryCaps::vm_types`] doesn't hold.
    fn create_vm(&self, vm_type: VmType) -> Result<Arc<dyn Vm>>;
}

/// One virtual machine.
pub trait Vm: Send + Sync {
    /// Creates the interrupt controllers and the timer of a PC (two 8259, an IOAPIC, a local APIC for each vCPU, a
    /// 8254). Before the first vCPU.
    fn create_irqchip(&self) -> Result<()>;

    /// Creates vCPU `id`.
    fn create_vcpu(&self, id: u8) -> Result<Box<dyn Vcpu>>;

    /// Makes every write to `event` an edge on interrupt line `gsi`.
    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()>;

    /// Sends the guest's conversion requests out as [`Exit::MapGpaRange`]. Without it they fail inside the hypervisor.
    fn exit_on_map_gpa_range(&self) -> Result<()>;

    /// Sends reads and writes of these MSRs out as [`Exit::MsrRead`] and [`Exit::MsrWrite`]. Replaces the last filter.
    fn filter_msrs(&self, filter: &[MsrFilter]) -> Result<()>;

    /// The nanoseconds that the guest's paravirtual clock shows.
    fn clock(&self) -> Result<u64>;

    /// Sets the guest's paravirtual clock.
    fn set_clock(&self, nanoseconds: u64) -> Result<()>;

    /// Creates private memory of `size` bytes for this VM. No process can map, read or write it.
    fn create_guest_memfd(&self, size: u64) -> Result<Arc<GuestMemfd>>;

    /// Puts a region before the guest in slot `slot`, and keeps its backings alive until it is removed.
    ///
    /// # Errors
    /// A slot in use or out of bounds, guest addresses that overlap another region's, slices outside their backings,
    /// private bytes that another region shows.
    fn add_region(&self, slot: u32, region: &Region) -> Result<()>;

    /// Takes a region away. Attributes of its addresses stay as they are.
    fn remove_region(&self, slot: u32) -> Result<()>;

    /// Sets the attribute of each page of `range`: all of it, or none and an error. Contents and backings stay.
    ///
    /// There is no way to read attributes back, and addresses without a region are taken: the caller clamps and keeps
    /// the record. On KVM an address without a region that the guest has accessed stays MMIO whatever is set, until
    /// regions change.
    fn set_attribute(&self, range: GpaRange, state: PageState) -> Result<()>;

    /// Gives the memory of `size` bytes at `offset` of a backing back. They read as zeros afterwards.
    fn discard(&self, backing: &Backing, offset: u64, size: u64) -> Result<()> {
        backing.discard(offset, size)
    }
}

/// MSRs that leave to the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrFilter {
    /// The first MSR.
    pub first: u32,
    /// How many from there; at least one.
    pub count: u32,
    /// Whether reads leave, too. Writes always do.
    pub reads: bool,
}

/// Makes a vCPU's runs come back, from any thread.
pub trait Interrupter: Send + Sync {
    /// While it is on, each [`Vcpu::run`] that begins comes back with [`Exit::Interrupted`], as soon as the last exit's
    /// answer is with the guest. One that has begun goes on until its thread gets a signal.
    fn set(&self, on: bool);
}

/// One virtual processor.
pub trait Vcpu: Send {
    /// What makes its runs come back. It may be kept longer than the vCPU.
    fn interrupter(&self) -> Result<Arc<dyn Interrupter>>;

    /// Lets it run from its registers, instead of waiting for INIT and SIPI as all but the first do.
    fn start_at_once(&self) -> Result<()>;

    /// Gives the guest a non-maskable interrupt.
    fn inject_nmi(&self) -> Result<()>;

    /// Tells the guest's paravirtual clock, if it uses one, that the vCPU stood still: what watches for processors that
    /// hang then takes no offence.
    fn excuse_pause(&self) -> Result<()>;

    /// Runs the guest until it needs the VMM. Nothing is converted here.
    fn run(&mut self) -> Result<Exit<'_>>;

    /// Sets what CPUID tells the guest.
    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()>;

    /// Reads the general registers.
    fn registers(&self) -> Result<Registers>;

    /// Writes the general registers.
    fn set_registers(&self, registers: &Registers) -> Result<()>;

    /// Reads the special registers.
    fn special_registers(&self) -> Result<SpecialRegisters>;

    /// Writes the special registers.
    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()>;

    /// Writes an MSR as the host does, past the filter.
    fn set_msr(&self, index: u32, value: u64) -> Result<()>;

    /// Lets the guest go on as if the write that the last exit reported, an [`Exit::MsrWrite`], was done. Does nothing
    /// after any other exit.
    fn accept_msr_write(&mut self);

    /// Gives the guest a general protection fault with error code 0 before its next instruction, which after an
    /// [`Exit::MemoryFault`] is the one that made the access. If the guest was about to take an exception (the access
    /// was to its stack, say), it takes the double fault that a processor would give it.
    ///
    /// Returns whether the guest was about to take an exception: then it has not got on since the last one.
    fn inject_general_protection(&mut self) -> Result<bool>;

    /// Populates what is behind `range`, page by page from its start, private or shared as each page's attribute says,
    /// as if the guest had touched it. Returns how many bytes from the start are done: at least a page, and not always
    /// all of it, so call again for the rest. Regions come and go between calls, not during one.
    ///
    /// # Errors
    /// [`crate::Error::PreFault`]: the first page could not be populated, and nothing is done.
    fn pre_fault(&self, range: GpaRange) -> Result<u64>;
}
