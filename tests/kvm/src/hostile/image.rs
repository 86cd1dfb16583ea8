//! The guest's kernel as a file: the program in an ELF file of one segment, as a `vmlinux` is.

use super::program;

/// Where the program is loaded: 16 MiB, as Linux is.
const GPA: u64 = 16 << 20;

const HEADER_SIZE: u16 = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;

/// An ELF file for x86-64 that has the program as its only segment.
pub fn vmlinux() -> Vec<u8> {
    vmlinux_for(62)
}

/// The same for any machine, by its number in ELF's register.
pub fn vmlinux_for(machine: u16) -> Vec<u8> {
    elf(machine, program::code(), program::SIZE)
}

/// An ELF file that has this code as its only segment, which takes `size` bytes of memory.
pub fn elf(machine: u16, code: &[u8], size: u64) -> Vec<u8> {
    let at = u64::from(HEADER_SIZE + PROGRAM_HEADER_SIZE);
    let mut file = Vec::with_capacity(at as usize + code.len());
    // 64-bit, little-endian, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let executable = 2u16;
    file.extend([executable, machine].into_iter().flat_map(u16::to_le_bytes));
    file.extend(1u32.to_le_bytes());
    let (entry, program_headers, section_headers) = (GPA, u64::from(HEADER_SIZE), 0);
    file.extend([entry, program_headers, section_headers].into_iter().flat_map(u64::to_le_bytes));
    let flags = 0u32;
    file.extend(flags.to_le_bytes());
    let counts_and_sizes = [HEADER_SIZE, PROGRAM_HEADER_SIZE, 1, 0, 0, 0];
    file.extend(counts_and_sizes.into_iter().flat_map(u16::to_le_bytes));
    // The segment: to be loaded, and all of reading, writing and executing allowed.
    let (load, all) = (1u32, 7u32);
    file.extend([load, all].into_iter().flat_map(u32::to_le_bytes));
    let (virtual_address, length, alignment) = (GPA, code.len() as u64, 16);
    let segment = [at, virtual_address, GPA, length, size, alignment];
    file.extend(segment.into_iter().flat_map(u64::to_le_bytes));
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::x86_64::image::KernelImage;

    #[test]
    fn the_file_is_a_kernel_to_umbra() {
        let file = vmlinux();
        let kernel = KernelImage::parse(&file).unwrap();
        let segments: Vec<_> = kernel.segments().collect();
        assert_eq!((kernel.entry(), segments.len()), (GPA, 1));
        assert_eq!((segments[0].gpa, segments[0].data, segments[0].memory_size), (GPA, program::code(), program::SIZE));
        assert!(KernelImage::parse(&vmlinux_for(183)).is_err());
    }
}
