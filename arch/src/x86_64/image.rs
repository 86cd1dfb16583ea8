//! From the bytes of a kernel file to a kernel that can be entered at its 64-bit entry.
//!
//! A VMM usually loads a bzImage whole and lets the code inside decompress the kernel. A guest with software isolation
//! can't start like that (that code knows nothing of a C-bit in its page tables), so the VMM decompresses the kernel
//! itself and enters the ELF file inside, Linux's `vmlinux`:
//!
//! 1. sniff: an ELF file, a bzImage, or something [`Foreign`] that the error names;
//! 2. `bzimage`: find the boot header and the compressed payload;
//! 3. `decompress`: gzip, xz, zstd or lz4, to exactly the size that the payload states;
//! 4. `elf`: the program headers, checked.
//!
//! A kernel file is hostile input. Whatever its bytes say, [`KernelImage::parse`] returns an error or a kernel whose
//! segments are sorted, apart from each other and inside the address space, and whose entry lies in a segment's
//! executable bytes. It never panics. Its work and its memory are bounded by the size of the file, by
//! [`MAX_DECOMPRESSED_SIZE`], and for an xz payload by a dictionary of at most 128 MiB besides.
//!
//! A `vmlinux` is borrowed as it is, and costs nothing. A bzImage costs its decompression: for Debian's kernels, of 53
//! to 66 MB, 30 ms (lz4), 70 ms (zstd) or 600 ms (xz), in a release build.

mod bzimage;
mod compression;
mod decompress;
mod elf;
mod foreign;

use std::borrow::Cow;

use bzimage::BzImage;
use elf::{Load, Vmlinux};

pub use bzimage::BzImageError;
pub use compression::Compression;
pub use decompress::{DecompressError, MAX_DECOMPRESSED_SIZE};
pub use elf::{ElfError, MAX_PROGRAM_HEADERS};
pub use foreign::Foreign;

/// What to do about a file that is no kernel for this machine.
const REMEDY: &str = "pass an x86-64 Linux vmlinuz (bzImage) or vmlinux";

/// A kernel file that can't be booted, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file has no bytes.
    #[error("the kernel image is empty: {}", REMEDY)]
    Empty,
    /// The file is something else that is known.
    #[error("the kernel image is {found}: {}", REMEDY)]
    Foreign {
        /// What it is.
        found: Foreign,
    },
    /// The file ends before the boot header, and is nothing known.
    #[error("the kernel image has {length} bytes, less than any kernel: {}", REMEDY)]
    TooShort {
        /// Its length.
        length: usize,
    },
    /// The file is nothing known.
    #[error("the kernel image starts with bytes {magic:02x?} and has no Linux boot header at 0x202: {}", REMEDY)]
    Unknown {
        /// The first bytes of the file.
        magic: [u8; 4],
    },
    /// The file is a bzImage that is damaged or not for this machine.
    #[error("the kernel image is a bzImage that can't be booted")]
    BzImage(#[from] BzImageError),
    /// The payload of a bzImage can't be decompressed.
    #[error("the kernel inside the bzImage can't be decompressed: pass an undamaged vmlinuz, or its vmlinux")]
    Payload(#[from] DecompressError),
    /// The payload of a bzImage decompresses, but to no kernel.
    #[error("the bzImage does not hold a kernel that can be booted")]
    PayloadElf(#[source] ElfError),
    /// The file is an ELF file, but no kernel.
    #[error("the kernel image is an ELF file that can't be booted")]
    Elf(#[source] ElfError),
}

/// A part of the kernel, and where it must stand in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'image> {
    /// Guest physical address of its first byte.
    pub gpa: u64,
    /// Its first bytes. There may be none.
    pub data: &'image [u8],
    /// Its size in memory, at least one byte and never less than `data.len()`. What follows the data must be zero.
    pub memory_size: u64,
}

impl Segment<'_> {
    /// The first address past the segment.
    pub fn end(&self) -> u64 {
        self.gpa + self.memory_size
    }
}

/// A kernel that can be entered at its 64-bit entry.
#[derive(Debug, Clone)]
pub struct KernelImage<'file> {
    /// The ELF file: the kernel file itself, or what its payload decompressed to.
    elf: Cow<'file, [u8]>,
    vmlinux: Vmlinux,
    setup_header: Option<&'file [u8]>,
}

impl<'file> KernelImage<'file> {
    /// Finds the kernel in the bytes of a bzImage or of an ELF file.
    ///
    /// # Errors
    /// For everything that is not an undamaged x86-64 kernel; the error says what the file is instead, or what is wrong
    /// with it and where.
    pub fn parse(file: &'file [u8]) -> Result<Self, ImageError> {
        if elf::is_elf(file) {
            let vmlinux = Vmlinux::parse(file).map_err(ImageError::Elf)?;
            return Ok(Self { elf: Cow::Borrowed(file), vmlinux, setup_header: None });
        }
        if bzimage::is_bzimage(file) {
            let image = BzImage::parse(file)?;
            let elf = decompress::decompress(image.payload)?;
            let vmlinux = Vmlinux::parse(&elf).map_err(ImageError::PayloadElf)?;
            return Ok(Self { elf, vmlinux, setup_header: Some(image.setup_header) });
        }
        Err(match (Foreign::identify(file), file.first_chunk()) {
            (Some(found), _) => ImageError::Foreign { found },
            (None, _) if file.is_empty() => ImageError::Empty,
            (None, Some(&magic)) if file.len() >= bzimage::MIN_FILE_SIZE => ImageError::Unknown { magic },
            (None, _) => ImageError::TooShort { length: file.len() },
        })
    }

    /// What to load, by ascending address. There is at least one segment, and no two overlap. Addresses and sizes need
    /// not be multiples of a page.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.vmlinux.loads.iter().map(|Load { gpa, data, memory_size, .. }| Segment {
            gpa: *gpa,
            data: &self.elf[data.clone()],
            memory_size: *memory_size,
        })
    }

    /// The ELF file, whole: the kernel file itself, or what its payload decompressed to.
    pub fn elf(&self) -> &[u8] {
        &self.elf
    }

    /// The guest physical address of the 64-bit entry, inside the executable data of a segment.
    pub fn entry(&self) -> u64 {
        self.vmlinux.entry
    }

    /// The header of a bzImage from its offset 0x1f1 to the header's end, to be copied to the same offset of the guest's
    /// `boot_params`; none for a vmlinux, which has none.
    ///
    /// It ends between 0x268 and 0x281, and its protocol version is 2.12 or later. What else it says is the file's
    /// word, unchecked.
    pub fn setup_header(&self) -> Option<&'file [u8]> {
        self.setup_header
    }

    /// The first address past all segments.
    pub fn end(&self) -> u64 {
        self.vmlinux.loads.last().map_or(0, Load::end)
    }
}

/// The `N` bytes at `offset`, if the file has them.
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}
