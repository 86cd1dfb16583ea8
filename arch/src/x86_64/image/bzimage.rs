//! The container of a compressed kernel: Linux's boot protocol, `Documentation/arch/x86/boot.rst`.
//!
//! ```text
//! 0x000        0x1f1 .. 0x202+n   (setup_sects + 1) * 512   + payload_offset      + payload_length
//! | real-mode code | boot header | ..  | 32 and 64-bit code | compressed vmlinux  | more code and data
//! ```

use super::bytes_at;

/// Where the boot header starts; its first byte is the number of 512-byte setup sectors.
const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
/// The offset in a jump over the header, which so tells the header's end.
const JUMP_OFFSET: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// Where the header of a protocol 2.12 kernel ends.
const MIN_HEADER_END: usize = 0x268;

/// The kernel has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
const BOOT_FLAG_VALUE: u16 = 0xaa55;
/// Protocol 2.12 brought `xloadflags`, with Linux 3.8.
const MIN_VERSION: u16 = 0x020c;
const SECTOR_SIZE: u64 = 512;
/// What zero setup sectors stand for.
const DEFAULT_SETUP_SECTORS: u8 = 4;

/// No shorter file has a boot header.
pub(super) const MIN_FILE_SIZE: usize = VERSION;

/// A bzImage that is damaged or not for this machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BzImageError {
    /// The file ends inside its boot header.
    #[error("the file ends at {length:#x}, inside its boot header, which ends at {end:#x}: the file is truncated")]
    Truncated {
        /// Length of the file.
        length: usize,
        /// End of the header.
        end: usize,
    },
    /// The boot sector has no valid signature.
    #[error("the boot flag at 0x1fe is {found:#06x} instead of 0xaa55: the file is damaged")]
    BootFlag {
        /// The value found.
        found: u16,
    },
    /// The boot protocol is older than what 64-bit kernels speak.
    #[error(
        "the boot protocol version at 0x206 is {}.{:02}, and 2.12 is needed: pass an x86-64 kernel, Linux 3.8 or later",
        found >> 8, found & 0xff
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// The length of the header can't be.
    #[error("the boot header ends at {end:#x} by its byte at 0x201, not within 0x268-0x281: the file is damaged")]
    HeaderLength {
        /// The end that the byte means.
        end: usize,
    },
    /// The kernel has no 64-bit entry.
    #[error("it is a 32-bit kernel (bit 0 of xloadflags {xloadflags:#06x} at 0x236 is clear): pass an x86-64 kernel")]
    Not64Bit {
        /// The flags.
        xloadflags: u16,
    },
    /// The payload is not inside the file.
    #[error(
        "its compressed kernel lies at {start:#x}-{end:#x}, and the file ends at {length:#x}: it is truncated or damaged"
    )]
    PayloadOutside {
        /// Offset of the payload in the file.
        start: u64,
        /// End of the payload in the file.
        end: u64,
        /// Length of the file.
        length: usize,
    },
}

/// What a bzImage holds.
pub(super) struct BzImage<'file> {
    /// The boot header, from 0x1f1 to its end.
    pub setup_header: &'file [u8],
    /// The compressed kernel, with its size appended.
    pub payload: &'file [u8],
}

/// Whether the file has a Linux boot header.
pub(super) fn is_bzimage(file: &[u8]) -> bool {
    bytes_at(file, MAGIC) == Some(*b"HdrS")
}

impl<'file> BzImage<'file> {
    /// Finds the header and the payload.
    pub fn parse(file: &'file [u8]) -> Result<Self, BzImageError> {
        let truncated = |end| BzImageError::Truncated { length: file.len(), end };
        let header: &[u8; MIN_HEADER_END] = file.first_chunk().ok_or_else(|| truncated(MIN_HEADER_END))?;
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);

        let boot_flag = u16_at(BOOT_FLAG);
        if boot_flag != BOOT_FLAG_VALUE {
            return Err(BzImageError::BootFlag { found: boot_flag });
        }
        let version = u16_at(VERSION);
        if version < MIN_VERSION {
            return Err(BzImageError::Version { found: version });
        }
        // The jump is forward, so its offset is a positive i8.
        let jump = header[JUMP_OFFSET];
        let header_end = MAGIC + usize::from(jump);
        if header_end < MIN_HEADER_END || jump > i8::MAX as u8 {
            return Err(BzImageError::HeaderLength { end: header_end });
        }
        let setup_header = file.get(SETUP_HEADER..header_end).ok_or_else(|| truncated(header_end))?;
        let xloadflags = u16_at(XLOADFLAGS);
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::Not64Bit { xloadflags });
        }

        let setup_sectors = match header[SETUP_HEADER] {
            0 => DEFAULT_SETUP_SECTORS,
            sectors => sectors,
        };
        let start = (u64::from(setup_sectors) + 1) * SECTOR_SIZE + u64::from(u32_at(PAYLOAD_OFFSET));
        let end = start + u64::from(u32_at(PAYLOAD_LENGTH));
        let payload = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| file.get(start..end))
            .ok_or(BzImageError::PayloadOutside { start, end, length: file.len() })?;
        Ok(Self { setup_header, payload })
    }
}
