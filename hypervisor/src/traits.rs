//! What a VMM needs of a hypervisor: three object-safe traits.
//!
//! The rules that an implementation keeps and a VMM may lean on stand in the methods' docs; the contract tests in
//! `tests/kvm` check them on real KVM.

use std::os::fd::BorrowedFd;
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

    /// Makes every write to `event` an edge on interrupt line `gsi`: a pin below [`INTERRUPT_PINS`], or a line of
    /// [`Vm::set_msi_routes`].
    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()>;

    /// Undoes [`Vm::register_irqfd`], if there is anything to undo. After it, writes to `event` interrupt nobody.
    fn unregister_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()>;

    /// Says which message each line above the pins sends, and replaces what was said before: lines that are not named send
    /// nothing. The pins of the interrupt controllers keep their lines.
    ///
    /// # Errors
    /// A line among the pins or beyond [`MAX_GSI`], and one that is named twice. Nothing has changed.
    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<()>;

    /// Makes every write of the guest's at `gpa`, of whatever width and value, a write to `event`, and nothing else: it
    /// doesn't leave [`Vcpu::run`].
    ///
    /// # Errors
    /// An address that has an event already.
    fn register_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()>;

    /// Undoes [`Vm::register_ioeventfd`]. After it, writes at `gpa` leave as [`Exit::MmioWrite`].
    ///
    /// # Errors
    /// An address that hasn't this event.
    fn unregister_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()>;

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

/// How many pins the interrupt controllers of a PC have; lines from here on are for messages.
pub const INTERRUPT_PINS: u32 = 24;

/// The highest number that an interrupt line may have (Linux `KVM_MAX_IRQ_ROUTES` less one).
pub const MAX_GSI: u32 = 4095;

/// The message that an interrupt line sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiRoute {
    /// The line: [`INTERRUPT_PINS`] or higher.
    pub gsi: u32,
    /// Where a device would write it (PCI 3.0, 6.8.1).
    pub address: u64,
    /// What it would write there.
    pub data: u32,
}

/// Checks the lines of routes; the error is KVM's number for it.
pub(crate) fn check_routes(routes: &[MsiRoute]) -> std::result::Result<(), i32> {
    let mut seen = std::collections::HashSet::with_capacity(routes.len());
    let valid = |route: &MsiRoute| (INTERRUPT_PINS..=MAX_GSI).contains(&route.gsi) && seen.insert(route.gsi);
    if routes.iter().all(valid) { Ok(()) } else { Err(libc::EINVAL) }
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

    /// Gives the guest a non-maskable interrupt. A processor that waits for INIT or SIPI goes without.
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
