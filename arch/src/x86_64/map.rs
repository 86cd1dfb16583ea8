//! Where things lie in the guest's physical address space, and on which ports.
//!
//! ```text
//! 0x0000_0000  launch area: code, page tables, boot parameters, command line (ordinary RAM after boot)
//! 0x000a_0000  RAM that no firmware table offers to the guest
//! 0x000e_0000  ACPI tables
//! 0x000f_0000  parked processors: mailbox, code, page tables
//! 0x0010_0000  RAM: kernel at its linked address, initramfs at the top of low RAM
//! 0xc000_0000  memory of PCI devices
//! 0xfec0_0000  the interrupt controllers; the local ones at 0xfee0_0000
//! 0x1_0000_0000  RAM beyond 3 GiB
//! ```

/// End of the memory that processors can start in.
pub const LOW_END: u64 = 0xa_0000;

/// ACPI tables and parked processors: `ACPI_START..ACPI_END`.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub(crate) const ACPI_TABLES_END: u64 = WAKEUP_MAILBOX;
/// The mailbox by which the guest wakes parked processors, one page (ACPI 6.5, 5.2.12.19).
pub const WAKEUP_MAILBOX: u64 = 0xf_0000;
/// The code of parked processors, one page.
pub(crate) const PARKING_CODE: u64 = 0xf_1000;
/// The page tables of parked processors, eight pages.
pub(crate) const PARKING_TABLES: u64 = 0xf_2000;
/// End of the area for ACPI, and of the first MiB.
pub const ACPI_END: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest; devices follow.
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// RAM that does not fit below [`LOW_RAM_LIMIT`] goes on here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Launch code of isolations that have some, one page.
pub(crate) const LAUNCH_CODE: u64 = 0x1000;
/// What the launch code copies: pairs of address and size, one page.
pub(crate) const LAUNCH_LIST: u64 = 0x2000;
/// The launch code's view of the shared alias (page tables, six pages).
pub(crate) const LAUNCH_PLAIN_TABLES: u64 = 0x3000;
/// The launch code's top table and one table of pointers for each of its two views.
pub(crate) const LAUNCH_TABLES: u64 = 0x9000;
/// Boot parameters (the "zero page").
pub(crate) const BOOT_PARAMS: u64 = 0x1_0000;
/// The boot processor's first global descriptor table.
pub(crate) const GDT: u64 = 0x1_1000;
/// The page tables that the kernel is entered with.
pub(crate) const PAGE_TABLES: u64 = 0x1_2000;
/// The kernel's command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, its closing zero included.
pub(crate) const COMMAND_LINE_ROOM: u64 = 0x1_0000;

/// Memory of PCI devices: `PCI_MEMORY_START..PCI_MEMORY_END`. There is never RAM in it.
pub const PCI_MEMORY_START: u32 = LOW_RAM_LIMIT as u32;
/// End of the memory of PCI devices.
pub const PCI_MEMORY_END: u32 = IOAPIC;

/// The IOAPIC of KVM's in-kernel interrupt controllers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// Ports of the first serial port (16550).
pub const SERIAL_PORT: u16 = 0x3f8;
/// How many ports a 16550 has.
pub const SERIAL_PORTS: u16 = 8;
/// Interrupt line of the first serial port.
pub const SERIAL_GSI: u32 = 4;

/// PCI configuration mechanism #1 (PCI 3.0, 3.2.2.3.2): what to access.
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// PCI configuration mechanism #1: the access, on four ports.
pub const PCI_DATA_PORT: u16 = 0xcfc;
/// How many ports the mechanism has.
pub const PCI_PORTS: u16 = 8;
/// How many slots the PCI bus has; the host bridge is in the first one.
pub const PCI_SLOTS: u8 = 32;

/// Registers of the platform's events, 32 bits each. Reading this one tells what has happened since it was last read.
pub const EVENT_PORT: u16 = 0x620;
/// Reading it tells which slots have got a device, a bit each, since it was last read.
pub const SLOTS_FILLED_PORT: u16 = 0x624;
/// Reading it tells which slots' devices are to be let go, since it was last read.
pub const SLOTS_LEAVING_PORT: u16 = 0x628;
/// Writing it says which slots' devices were let go.
pub const SLOTS_EJECT_PORT: u16 = 0x62c;
/// End of the event registers.
pub const EVENT_PORTS_END: u16 = 0x630;
/// Interrupt line of the platform's events, an edge each.
pub const EVENT_GSI: u32 = 5;
/// Something has happened to a slot.
pub const EVENT_SLOTS: u32 = 1 << 0;
/// The power button was pushed.
pub const EVENT_POWER_BUTTON: u32 = 1 << 1;

/// ACPI sleep control register: a write with [`SLEEP_ENABLE`] set goes to the sleep state in bits 4:2.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register: [`RESET_VALUE`] resets the machine.
pub const RESET_PORT: u16 = 0x602;
/// What to write to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// `SLP_EN` of the sleep control register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// Where the sleep state starts in the sleep control register.
pub const SLEEP_TYPE_SHIFT: u8 = 2;
/// The value of this machine's `_S5` object: soft off.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// The clock (MC146818): the port that selects a register, and behind it the one that reads and writes it.
pub const CMOS_PORT: u16 = 0x70;
/// How many ports the clock has.
pub const CMOS_PORTS: u16 = 2;
/// Where the clock's memory has the century.
pub const CMOS_CENTURY: u8 = 0x32;

/// The launch code writes here once, when the guest's private memory holds all it needs.
pub const LAUNCH_PORT: u16 = 0x608;

/// A parked processor reads here before each look into the mailbox. The read may take a while.
pub const PARKING_PORT: u16 = 0x609;
/// A parked processor writes here once, when it has been woken and is about to leave.
pub const LEAVING_PORT: u16 = 0x60a;

/// The keyboard controller's command port; [`KEYBOARD_RESET`] there resets the machine, too.
pub const KEYBOARD_PORT: u16 = 0x64;
/// "Pulse the reset line."
pub const KEYBOARD_RESET: u8 = 0xfe;
