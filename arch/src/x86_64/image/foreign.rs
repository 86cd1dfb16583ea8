//! What a file is that was taken for a kernel.
//!
//! Only for error messages: nothing is decided by these guesses but how a refusal is worded.

use std::fmt;

use super::{Compression, bytes_at};

/// A known kind of file that is not an x86-64 kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// A kernel compressed inside an EFI program, as other architectures have it.
    EfiZboot,
    /// The kernel of an arm64 machine.
    Arm64Image,
    /// The kernel of a RISC-V machine.
    RiscvImage,
    /// A Windows or EFI program without a Linux boot header.
    Pe {
        /// The machine it is for, if its header is there.
        machine: Option<u16>,
    },
    /// A kernel or ramdisk wrapped for the U-Boot loader.
    UImage,
    /// A compressed file, such as a kernel of another architecture or an initramfs.
    Compressed {
        /// How it is compressed.
        compression: Compression,
    },
    /// A cpio archive, as an initramfs is.
    Cpio,
    /// A Debian package, or another `ar` archive.
    Ar,
    /// A script.
    Script,
    /// A boot sector without a Linux boot header.
    BootSector,
}

impl Foreign {
    /// Looks for the magic of something known.
    pub(super) fn identify(file: &[u8]) -> Option<Self> {
        if bytes_at(file, 0x38) == Some(*b"ARM\x64") {
            return Some(Self::Arm64Image);
        }
        if bytes_at(file, 0x38) == Some(*b"RSC\x05") {
            return Some(Self::RiscvImage);
        }
        if file.starts_with(b"MZ") {
            return Some(match bytes_at(file, 4) {
                Some([b'z', b'i', b'm', b'g']) => Self::EfiZboot,
                _ => Self::Pe { machine: pe_machine(file) },
            });
        }
        if let Some(compression) = Compression::identify(file) {
            return Some(Self::Compressed { compression });
        }
        if file.starts_with(b"\x27\x05\x19\x56") {
            return Some(Self::UImage);
        }
        if [b"070701", b"070702", b"070707"].iter().any(|magic| file.starts_with(*magic)) {
            return Some(Self::Cpio);
        }
        if file.starts_with(b"!<arch>\n") {
            return Some(Self::Ar);
        }
        if file.starts_with(b"#!") {
            return Some(Self::Script);
        }
        (bytes_at(file, 0x1fe) == Some([0x55, 0xaa])).then_some(Self::BootSector)
    }
}

/// The machine that the header of a PE file names.
fn pe_machine(file: &[u8]) -> Option<u16> {
    let header = usize::try_from(u32::from_le_bytes(bytes_at(file, 0x3c)?)).ok()?;
    let [b'P', b'E', 0, 0, low, high] = bytes_at(file, header)? else { return None };
    Some(u16::from_le_bytes([low, high]))
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EfiZboot => f.write_str("an EFI zboot image, as other architectures boot from"),
            Self::Arm64Image => f.write_str("an arm64 Linux Image"),
            Self::RiscvImage => f.write_str("a RISC-V Linux Image"),
            Self::Pe { machine: None } => f.write_str("a DOS, Windows or EFI program, or a truncated bzImage"),
            Self::Pe { machine: Some(machine) } => {
                write!(f, "a Windows or EFI program for machine {machine:#x}, without a Linux boot header")
            }
            Self::UImage => f.write_str("a U-Boot image"),
            Self::Compressed { compression } => write!(f, "a file compressed with {compression}"),
            Self::Cpio => f.write_str("a cpio archive, as an initramfs is"),
            Self::Ar => f.write_str("an ar archive, as a Debian package is"),
            Self::Script => f.write_str("a script"),
            Self::BootSector => f.write_str("a boot sector without a Linux boot header"),
        }
    }
}
