//! Makes small kernel files. The fuzz target includes this file too.

use std::io::Write;

/// Every way in which a bzImage holds its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Stored,
    Gzip,
    Xz,
    Zstd,
    Lz4,
}

impl Packing {
    pub const ALL: [Self; 5] = [Self::Stored, Self::Gzip, Self::Xz, Self::Zstd, Self::Lz4];

    /// The payload of a bzImage as Linux's build makes it, with the size at its end.
    pub fn pack(self, kernel: &[u8]) -> Vec<u8> {
        let mut payload = match self {
            Self::Stored => return kernel.to_vec(),
            // Its trailer ends with the size.
            Self::Gzip => return gzip(kernel),
            Self::Xz => xz(kernel),
            Self::Zstd => zstd::bulk::compress(kernel, 1).expect("zstd compresses into memory"),
            Self::Lz4 => lz4_legacy(kernel),
        };
        payload.extend(u32::try_from(kernel.len()).expect("a small kernel").to_le_bytes());
        payload
    }
}

fn gzip(kernel: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(kernel).expect("gzip compresses into memory");
    encoder.finish().expect("gzip compresses into memory")
}

/// With the filter and the checksum that Linux's build asks for.
fn xz(kernel: &[u8]) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
    options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("the options are valid");
    encoder.write_all(kernel).expect("xz compresses into memory");
    encoder.finish().expect("xz compresses into memory")
}

fn lz4_legacy(kernel: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    for chunk in kernel.chunks(8 << 20) {
        let block = lz4_flex::block::compress(chunk);
        frame.extend(u32::try_from(block.len()).expect("a small block").to_le_bytes());
        frame.extend(block);
    }
    frame
}

/// Size of the real-mode code of the images that [`bzimage`] makes: the boot sector and one more.
pub const SETUP_SIZE: usize = 1024;
/// Where the payload starts in the images that [`bzimage`] makes.
pub const PAYLOAD_START: usize = SETUP_SIZE + 0x40;
/// End of the boot header in the images that [`bzimage`] makes; that of Linux 6.
pub const HEADER_END: usize = 0x26c;

/// Wraps a payload into a bzImage that ends with it.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; PAYLOAD_START];
    put(&mut file, 0, *b"MZ");
    put(&mut file, 0x1f1, [1]);
    put(&mut file, 0x1fe, 0xaa55_u16.to_le_bytes());
    put(&mut file, 0x200, [0xeb, (HEADER_END - 0x202) as u8]);
    put(&mut file, 0x202, *b"HdrS");
    put(&mut file, 0x206, 0x020f_u16.to_le_bytes());
    put(&mut file, 0x236, 0x007f_u16.to_le_bytes());
    put(&mut file, 0x248, ((PAYLOAD_START - SETUP_SIZE) as u32).to_le_bytes());
    put(&mut file, 0x24c, u32::try_from(payload.len()).expect("a small payload").to_le_bytes());
    file.extend(payload);
    file
}

pub const LOAD: u32 = 1;
pub const INTERPRETER: u32 = 3;
pub const NOTE: u32 = 4;
pub const THREAD_LOCAL: u32 = 7;
pub const EXECUTE: u32 = 1;
pub const READ_WRITE: u32 = 6;

pub const HEADER: usize = 64;
pub const PROGRAM_HEADER: usize = 56;

/// A program header, and its bytes.
#[derive(Debug, Clone)]
pub struct Part {
    pub kind: u32,
    pub flags: u32,
    pub gpa: u64,
    pub data: Vec<u8>,
    pub memory_size: u64,
}

impl Part {
    pub fn load(flags: u32, gpa: u64, data: &[u8], memory_size: u64) -> Self {
        Self { kind: LOAD, flags, gpa, data: data.to_vec(), memory_size }
    }
}

/// An ELF file with the parts' bytes behind its headers, in their order and to its end.
pub fn elf(entry: u64, parts: &[Part]) -> Vec<u8> {
    let mut file = vec![0; HEADER + parts.len() * PROGRAM_HEADER];
    put(&mut file, 0, *b"\x7fELF\x02\x01\x01");
    put(&mut file, 0x10, 2_u16.to_le_bytes());
    put(&mut file, 0x12, 62_u16.to_le_bytes());
    put(&mut file, 0x14, 1_u32.to_le_bytes());
    put(&mut file, 0x18, entry.to_le_bytes());
    put(&mut file, 0x20, (HEADER as u64).to_le_bytes());
    put(&mut file, 0x34, (HEADER as u16).to_le_bytes());
    put(&mut file, 0x36, (PROGRAM_HEADER as u16).to_le_bytes());
    put(&mut file, 0x38, (parts.len() as u16).to_le_bytes());
    for (index, part) in parts.iter().enumerate() {
        let header = program_header(index);
        let offset = file.len() as u64;
        put(&mut file, header, part.kind.to_le_bytes());
        put(&mut file, header + 0x04, part.flags.to_le_bytes());
        put(&mut file, header + 0x08, offset.to_le_bytes());
        put(&mut file, header + 0x10, (part.gpa | 0xffff_ffff_8000_0000).to_le_bytes());
        put(&mut file, header + 0x18, part.gpa.to_le_bytes());
        put(&mut file, header + 0x20, (part.data.len() as u64).to_le_bytes());
        put(&mut file, header + 0x28, part.memory_size.to_le_bytes());
        file.extend(&part.data);
    }
    file
}

/// Where a program header of [`elf`]'s lies in its file.
pub fn program_header(index: usize) -> usize {
    HEADER + index * PROGRAM_HEADER
}

/// The parts of a kernel that is laid out as Linux is, but listed out of order.
pub fn kernel_parts() -> Vec<Part> {
    vec![
        Part::load(READ_WRITE, 0x2a0_0000, b"data", 0x5000),
        Part { kind: NOTE, ..Part::load(0, 0x100_0004, b"note", 4) },
        Part::load(EXECUTE, 0x100_0000, b"\xe8\0\0\0\0 text text text \xe8\x01\0\0\0 text", 0x1000),
        Part::load(READ_WRITE, 0x2a0_5000, b"", 0x2000),
    ]
}

/// A sound kernel of a few hundred bytes.
pub fn kernel() -> Vec<u8> {
    elf(0x100_0005, &kernel_parts())
}

/// Overwrites bytes of a file.
pub fn put<const N: usize>(file: &mut [u8], offset: usize, bytes: [u8; N]) {
    file[offset..offset + N].copy_from_slice(&bytes);
}
