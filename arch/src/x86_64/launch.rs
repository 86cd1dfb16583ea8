//! From a kernel, an initramfs and a command line to what must stand in guest memory and in the boot processor.
//!
//! Linux is entered at its 64-bit entry (Linux `Documentation/arch/x86/boot.rst`): long mode, identity page tables, boot
//! parameters in RSI. That is all for `none`.
//!
//! With `software` nobody can write private memory but the guest, so the guest begins with a page of launch code (`stub.rs`)
//! in the *launch window*: memory beside RAM, which is there for this alone ([`MemoryLayout::launch_window`]). The code copies
//! the boot parameters, the ACPI tables, the kernel and the initramfs from the window to private RAM, goes on in its own
//! private copy, loads page tables that lie in private memory and map it, writes to
//! [`LAUNCH_PORT`](super::map::LAUNCH_PORT) and enters the kernel. On that write the VMM takes the window away. RAM is private
//! from the start. Its shared side is not used for this: it would be in small pages, each of which the guest would have
//! to fault in.
//!
//! The other processors wait for the guest in the private ACPI area (`parking.rs`). With `none` they wait for INIT and
//! SIPI, as those of a PC do, and nothing is planned for them.
//!
//! A plan is pure data. Everything in it lies inside RAM and nothing overlaps, or there is no plan.

pub mod parking;
mod sparse;
mod stub;
mod touched;

use std::borrow::Cow;

use hypervisor::x86_64::{Registers, Segment, SpecialRegisters};
use hypervisor::{ByteSize, GpaRange, PAGE_SIZE};

use super::acpi::ProcessorStart;
use super::boot_params::{self, KernelHeader};
use super::image::KernelImage;
use super::map::{
    ACPI_END, ACPI_START, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_ROOM, GDT, LAUNCH_CODE, LAUNCH_LIST,
    LAUNCH_PLAIN_TABLES, LAUNCH_TABLES, LOW_RAM_LIMIT, PAGE_TABLES, PARKING_CODE, PARKING_TABLES,
};
use super::{MemoryLayout, acpi, paging};

/// Bytes that must stand at a guest address before the first instruction.
#[derive(Debug, Clone)]
pub struct Blob<'a> {
    /// Where.
    pub gpa: u64,
    /// What.
    pub data: Cow<'a, [u8]>,
}

/// What must be in place before the guest's first instruction.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// Contents of memory: of the launch window, if there is one, and of RAM otherwise. Everything else is zero.
    pub blobs: Vec<Blob<'a>>,
    /// The launch window.
    pub window: Option<Window>,
    /// The boot processor's general registers.
    pub registers: Registers,
    /// The address of its page tables.
    pub cr3: u64,
    /// Whether launch code runs first and says so on the launch port when it is done.
    pub announces: bool,
    /// Where the other processors wait for the guest; `None` if they wait for INIT.
    pub parking: Option<Parking>,
}

/// What launch code copies from, and what of private memory is worth populating before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The window. What belongs at an address of RAM lies so far behind its start.
    pub range: GpaRange,
    /// RAM that Linux touches until its init, in this order: whole pages that are worth populating before. A guest that does
    /// without holds that memory all the same.
    pub touched: Vec<GpaRange>,
}

/// Where processors wait until the guest wakes them through its mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parking {
    /// The address of their page tables, C-bit included.
    cr3: u64,
}

/// Why a guest can't be launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The kernel wants the memory that the machine's tables lie in.
    #[error("the kernel starts at {start:#x}, and nothing below {ACPI_END:#x} is free for it: link it higher")]
    KernelTooLow {
        /// First address that the kernel needs.
        start: u64,
    },
    /// The kernel and the RAM don't fit.
    #[error(
        "the kernel needs {start:#x}-{end:#x}, and RAM is {} there: give the guest at least {} MiB",
        ByteSize(*low_ram_end),
        end.div_ceil(1 << 20) + 16
    )]
    KernelDoesNotFit {
        /// First address that the kernel needs.
        start: u64,
        /// First address behind it.
        end: u64,
        /// End of RAM there.
        low_ram_end: u64,
    },
    /// The initramfs does not fit behind the kernel.
    #[error(
        "the initramfs of {} does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}: give the guest more \
         memory or a smaller initramfs",
        ByteSize(*size)
    )]
    InitramfsDoesNotFit {
        /// Its size in bytes.
        size: u64,
        /// End of the kernel.
        kernel_end: u64,
        /// Where it must end, at the most.
        limit: u64,
    },
    /// The command line is too long.
    #[error("the command line has {length} bytes, and this kernel takes at most {limit}")]
    CommandLineTooLong {
        /// Its length in bytes.
        length: u64,
        /// The most the kernel takes.
        limit: u64,
    },
    /// The command line has a zero in it.
    #[error("the command line holds a zero byte at offset {0}")]
    CommandLineHoldsZero(usize),
    /// No ACPI tables.
    #[error("cannot describe the machine")]
    Acpi(#[from] acpi::AcpiError),
}

/// Plans the launch of a kernel on `processors` processors.
///
/// # Errors
/// Whatever does not fit into RAM, and command lines that the kernel would cut.
pub fn plan<'a>(
    layout: &MemoryLayout,
    kernel: &'a KernelImage,
    initramfs: &'a [u8],
    command_line: &'a str,
    processors: u8,
) -> Result<Launch<'a>, LaunchError> {
    let header = KernelHeader::new(kernel.setup_header());
    check_command_line(command_line, &header)?;
    let initramfs_gpa = place_initramfs(layout, kernel, &header, initramfs.len() as u64)?;
    let mark = layout.c_bit().map_or(0, |bit| 1 << bit);
    let parks = layout.c_bit().is_some() && processors > 1;
    let start = if parks { ProcessorStart::Mailbox } else { ProcessorStart::StartupInterrupt };

    let params = boot_params::build(
        header,
        layout,
        (initramfs_gpa, initramfs.len() as u64),
        command_line.len() as u64,
        acpi::RSDP,
    );
    let mut blobs = vec![
        Blob { gpa: BOOT_PARAMS, data: params.into() },
        Blob { gpa: GDT, data: gdt().into() },
        Blob { gpa: PAGE_TABLES, data: paging::identity(PAGE_TABLES, mark).into() },
        Blob { gpa: COMMAND_LINE, data: command_line.as_bytes().into() },
        Blob { gpa: ACPI_START, data: acpi::build(processors, start)?.into() },
    ];
    if parks {
        blobs.push(Blob { gpa: PARKING_CODE, data: parking::code().into() });
        blobs.push(Blob { gpa: PARKING_TABLES, data: parking::tables(mark).into() });
    }
    let mut left = sparse::MOST;
    for (gpa, data) in kernel.segments().map(|segment| (segment.gpa, segment.data)).chain([(initramfs_gpa, initramfs)])
    {
        blobs.extend(sparse::pieces(gpa, data, &mut left).map(|(gpa, data)| Blob { gpa, data: data.into() }));
    }

    let mut registers = Registers { rflags: 2, rip: kernel.entry(), rsi: BOOT_PARAMS, ..Default::default() };
    let mut cr3 = PAGE_TABLES;
    let mut window = None;
    if let Some(range) = layout.launch_window() {
        blobs.push(Blob { gpa: LAUNCH_CODE, data: stub::code().into() });
        // All but what only the launch code uses, and only until it has copied.
        let copied = blobs.iter().map(|blob| (blob.gpa, blob.data.len() as u64));
        let small = copied.clone().filter(|(gpa, _)| *gpa < ACPI_END);
        let segments = kernel.segments().map(|segment| (segment.gpa, segment.memory_size));
        let touched = touched::touched(
            small,
            segments,
            touched::Place {
                ram: layout.size(),
                has_high: layout.size() > LOW_RAM_LIMIT,
                low_end: layout.usable_low_end(),
                initramfs: (initramfs_gpa, initramfs.len() as u64),
            },
        );
        blobs.push(Blob { gpa: LAUNCH_LIST, data: stub::copy_list(copied).into() });
        // These tables lie in the window, and show it.
        let place = range.start();
        blobs.push(Blob { gpa: LAUNCH_PLAIN_TABLES, data: paging::identity(LAUNCH_PLAIN_TABLES, place).into() });
        let views = [PAGE_TABLES, LAUNCH_PLAIN_TABLES].map(|tables| paging::identity_directories(tables) | place);
        cr3 = LAUNCH_TABLES | place;
        blobs.push(Blob { gpa: LAUNCH_TABLES, data: paging::views(cr3, &views).into() });
        registers = stub::entry(stub::Entry {
            window: paging::view_start(1),
            code: LAUNCH_CODE,
            list: LAUNCH_LIST,
            kernel_tables: PAGE_TABLES | mark,
            boot_params: BOOT_PARAMS,
            kernel_entry: kernel.entry(),
        });
        window = Some(Window { range, touched });
    }
    let parking = parks.then_some(Parking { cr3: PARKING_TABLES | mark });
    Ok(Launch { blobs, window, registers, cr3, announces: layout.c_bit().is_some(), parking })
}

impl Launch<'_> {
    /// Sets the special registers of the boot processor, which was just created.
    pub fn set_special_registers(&self, special: &mut SpecialRegisters) {
        enter_long_mode(special, self.cr3);
    }
}

impl Parking {
    /// Registers to start processor `id` with.
    pub fn registers(&self, id: u8) -> Registers {
        parking::entry(id)
    }

    /// Sets the special registers of a processor that was just created.
    pub fn set_special_registers(&self, special: &mut SpecialRegisters) {
        // The tables that the guest puts in place for it may have no-execute bits.
        const EFER_NXE: u64 = 1 << 11;
        enter_long_mode(special, self.cr3);
        special.efer |= EFER_NXE;
    }
}

/// Long mode with these page tables.
fn enter_long_mode(special: &mut SpecialRegisters, cr3: u64) {
    // Control registers and EFER: AMD's manual volume 2, 3.1.
    const CR0_PE_MP_ET_NE_WP_AM_PG: u64 = 0x8005_0033;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    special.cr0 = CR0_PE_MP_ET_NE_WP_AM_PG;
    special.cr3 = cr3;
    special.cr4 = CR4_PAE;
    special.efer = EFER_LME_LMA;
    special.gdt.base = GDT;
    special.gdt.limit = (size_of_val(&GDT_ENTRIES) - 1) as u16;
    let code =
        Segment { limit: u32::MAX, selector: 0x10, type_: 0xb, present: 1, s: 1, l: 1, g: 1, ..Default::default() };
    let data = Segment { selector: 0x18, type_: 3, l: 0, db: 1, ..code };
    special.cs = code;
    for segment in [&mut special.ds, &mut special.es, &mut special.ss, &mut special.fs, &mut special.gs] {
        *segment = data;
    }
}

/// Flat code and data segments at the selectors that the boot protocol wants, 0x10 and 0x18.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

fn gdt() -> Vec<u8> {
    GDT_ENTRIES.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn check_command_line(command_line: &str, header: &KernelHeader) -> Result<(), LaunchError> {
    if let Some(at) = command_line.bytes().position(|byte| byte == 0) {
        return Err(LaunchError::CommandLineHoldsZero(at));
    }
    let limit = header.command_line_max().min(COMMAND_LINE_ROOM - 1);
    match command_line.len() as u64 {
        length if length > limit => Err(LaunchError::CommandLineTooLong { length, limit }),
        _ => Ok(()),
    }
}

/// Puts the initramfs at the top of low RAM, as high as the kernel can take it.
fn place_initramfs(
    layout: &MemoryLayout,
    kernel: &KernelImage,
    header: &KernelHeader,
    size: u64,
) -> Result<u64, LaunchError> {
    let low_ram_end = layout.usable_low_end();
    let start = kernel.segments().map(|segment| segment.gpa).min().unwrap_or(0);
    let end = kernel.end();
    if start < ACPI_END {
        return Err(LaunchError::KernelTooLow { start });
    }
    if end > low_ram_end {
        return Err(LaunchError::KernelDoesNotFit { start, end, low_ram_end });
    }
    if size == 0 {
        return Ok(0);
    }
    let limit = low_ram_end.min(header.initramfs_max().saturating_add(1)) & !(PAGE_SIZE - 1);
    let gpa = limit.checked_sub(size).map(|gpa| gpa & !(PAGE_SIZE - 1));
    match gpa {
        Some(gpa) if gpa >= end => Ok(gpa),
        _ => Err(LaunchError::InitramfsDoesNotFit { size, kernel_end: end, limit }),
    }
}
