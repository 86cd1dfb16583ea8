//! Boot parameters (the "zero page") by which Linux is told of its memory, command line, initramfs and ACPI tables.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::MemoryLayout;
use super::map::{ACPI_END, ACPI_START, COMMAND_LINE, LOW_END};

/// `type_of_loader` of a boot loader that has no number.
const LOADER_UNKNOWN: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Boot protocol 2.15, for a vmlinux that brings no header.
const PROTOCOL: u16 = 0x020f;
/// Where a kernel without a header wants its initramfs to end, at the most.
const INITRAMFS_MAX: u32 = 0x7fff_ffff;
/// What a kernel without a header takes of a command line (`COMMAND_LINE_SIZE` of Linux x86, less its closing zero).
const COMMAND_LINE_MAX: u32 = 2047;

/// Kinds of memory in the map that firmware gives (ACPI 6.5, table 15.4).
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;

/// What a kernel says of itself in the header of its file, or what is right for one that says nothing.
#[derive(Debug, Clone, Copy)]
pub struct KernelHeader(setup_header);

impl KernelHeader {
    /// Takes the header's bytes as they stand in the file from offset 0x1f1 on.
    pub fn new(bytes: Option<&[u8]>) -> Self {
        let mut header = setup_header::default();
        match bytes {
            Some(bytes) => {
                let target = header.as_mut_slice();
                let length = bytes.len().min(target.len());
                target[..length].copy_from_slice(&bytes[..length]);
            }
            None => {
                header.boot_flag = BOOT_FLAG;
                header.header = HEADER_MAGIC;
                header.version = PROTOCOL;
                header.initrd_addr_max = INITRAMFS_MAX;
                header.cmdline_size = COMMAND_LINE_MAX;
            }
        }
        header.type_of_loader = LOADER_UNKNOWN;
        Self(header)
    }

    /// The highest address that the initramfs may reach.
    pub fn initramfs_max(&self) -> u64 {
        u64::from(self.0.initrd_addr_max)
    }

    /// How many bytes the command line may have, its closing zero not counted.
    pub fn command_line_max(&self) -> u64 {
        u64::from(self.0.cmdline_size)
    }
}

/// The boot parameters as bytes: one page.
pub fn build(
    header: KernelHeader,
    layout: &MemoryLayout,
    initramfs: (u64, u64),
    command_line_size: u64,
    rsdp: u64,
) -> Vec<u8> {
    let mut params = boot_params { hdr: header.0, acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line_size as u32;
    let (address, size) = initramfs;
    params.hdr.ramdisk_image = address as u32;
    params.ext_ramdisk_image = (address >> 32) as u32;
    params.hdr.ramdisk_size = size as u32;
    params.ext_ramdisk_size = (size >> 32) as u32;
    let map = memory_map(layout);
    for (entry, target) in map.iter().zip(&mut params.e820_table) {
        *target = *entry;
    }
    params.e820_entries = map.len() as u8;
    params.as_slice().to_vec()
}

/// RAM, the ACPI tables' area, and the window that is not the guest's. Type 3 is what makes the guest map the tables as private memory.
fn memory_map(layout: &MemoryLayout) -> Vec<boot_e820_entry> {
    let entry = |start, end, kind| boot_e820_entry { addr: start, size: end - start, r#type: kind };
    let mut map = vec![
        entry(0, LOW_END, E820_RAM),
        entry(ACPI_START, ACPI_END, E820_ACPI),
        entry(ACPI_END, layout.usable_low_end(), E820_RAM),
    ];
    if let Some(window) = layout.window() {
        map.push(entry(window.start(), window.end(), E820_RESERVED));
    }
    for ram in layout.ranges().iter().filter(|ram| ram.gpa.start() >= layout.low_ram_end()) {
        map.push(entry(ram.gpa.start(), ram.gpa.end(), E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::Isolation;

    #[test]
    fn a_kernel_reads_back_what_it_was_told() {
        let layout = MemoryLayout::new(Isolation::Software, 4 << 30, 48).unwrap();
        let bytes = build(KernelHeader::new(None), &layout, (0x1_2345_6000, 0x789), 11, 0xe0000);
        assert_eq!(bytes.len(), 4096);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(u64::from_le_bytes(bytes[0x70..0x78].try_into().unwrap()), 0xe0000);
        assert_eq!((word(0x218), word(0xc0), word(0x21c)), (0x2345_6000, 1, 0x789));
        assert_eq!((word(0x228), word(0x238)), (COMMAND_LINE as u32, 11));
        assert_eq!(&bytes[0x202..0x206], b"HdrS");
        assert_eq!(bytes[0x1e8], 4);
        let ram: u64 = (0..4)
            .map(|i| 0x2d0 + 20 * i)
            .filter(|at| word(at + 16) == E820_RAM)
            .map(|at| u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap()))
            .sum();
        assert_eq!(ram, (4 << 30) - (ACPI_END - LOW_END));
    }

    #[test]
    fn a_window_is_reserved_and_nothing_else_changes() {
        let layout = MemoryLayout::new(Isolation::Software, 4 << 30, 48).unwrap();
        let kinds = |layout: &MemoryLayout| -> Vec<(u64, u64, u32)> {
            memory_map(layout).iter().map(|entry| (entry.addr, entry.size, entry.r#type)).collect()
        };
        let (before, window) = (kinds(&layout), 16 << 20);
        let after = kinds(&layout.reserving(window).unwrap());
        let end = before[2].0 + before[2].1;
        let mut expected = before.clone();
        expected[2].1 -= window;
        expected.insert(3, (end - window, window, E820_RESERVED));
        assert_eq!(after, expected);
    }

    #[test]
    fn a_header_longer_than_ours_is_cut_and_a_shorter_one_taken() {
        for length in [0, 1, 80, 123, 200] {
            let bytes = vec![0x5a; length];
            let header = KernelHeader::new(Some(&bytes));
            let taken = header.0.as_slice();
            // Byte 0x1f is the loader's own.
            for (at, byte) in taken.iter().enumerate().filter(|(at, _)| *at != 0x1f) {
                assert_eq!(*byte, if at < length { 0x5a } else { 0 }, "{length} {at}");
            }
        }
    }
}
