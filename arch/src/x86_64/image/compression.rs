//! The formats that kernels come compressed in, by their magic.

use std::fmt;

/// A compression that Linux's build offers, or offered, for kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// DEFLATE with gzip's header and trailer.
    Gzip,
    /// LZMA2, usually behind the filter for x86 code.
    Xz,
    /// Zstandard.
    Zstd,
    /// LZ4 in its legacy frame, the one that kernels use.
    Lz4,
    /// LZ4 in its later frame.
    Lz4Frame,
    /// bzip2.
    Bzip2,
    /// LZMA in the file format that xz replaced.
    Lzma,
    /// LZO.
    Lzo,
}

impl Compression {
    const MAGICS: [(&[u8], Self); 8] = [
        (b"\x1f\x8b", Self::Gzip),
        (b"\xfd7zXZ\0", Self::Xz),
        (b"\x28\xb5\x2f\xfd", Self::Zstd),
        (b"\x02\x21\x4c\x18", Self::Lz4),
        (b"\x04\x22\x4d\x18", Self::Lz4Frame),
        (b"BZh", Self::Bzip2),
        (b"\x5d\0\0", Self::Lzma),
        (b"\x89LZO\0", Self::Lzo),
    ];

    /// What the bytes are compressed with, if they start with a known magic.
    pub(super) fn identify(bytes: &[u8]) -> Option<Self> {
        Self::MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, compression)| compression)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lz4Frame => "lz4 (not the legacy frame)",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        })
    }
}
