//! The payload of a bzImage: a `vmlinux`, compressed in one of the formats that distributions use.
//!
//! Linux's build ends every payload with the size of the decompressed kernel, as four bytes in little-endian order:
//! gzip's own trailer has it so, and behind the other formats the build appends it. That size is a claim to be held to:
//! it is checked against [`MAX_DECOMPRESSED_SIZE`] first, output stops one byte past it at the latest, and a stream that
//! yields more or less, or that leaves bytes of the payload unread, is an error.
//!
//! Memory: the output, plus for xz as much again, up to its dictionary's 128 MiB. Pages of the output that no
//! decompressed byte reaches are reserved at the most, never touched.
//!
//! The decoders of gzip, xz and lz4 are safe Rust, xz's at 1.5 times the time of liblzma. For zstd that choice would
//! triple the time, and zstd is what most kernels use, so its decoder is the reference one, in C.

use std::borrow::Cow;
use std::collections::TryReserveError;
use std::io::{self, Read};

use super::{Compression, elf};

/// No kernel decompresses to more bytes than this.
pub const MAX_DECOMPRESSED_SIZE: usize = 1 << 30;

/// The appended size.
const SIZE_BYTES: usize = 4;
/// An xz decoder with Linux's dictionary of 128 MiB, the largest its build asks for, and its state.
const XZ_MEMORY_LIMIT_KIB: u32 = 129 << 10;
/// More than a kernel shrinks by compression: so much output may be reserved in one step.
const USUAL_RATIO: usize = 16;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What a block of a legacy lz4 frame decompresses to, at the most.
const LZ4_BLOCK_SIZE: usize = 8 << 20;
/// No input byte of an lz4 block makes more output than this.
const LZ4_MAX_RATIO: usize = 255;

/// A payload that can't be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// The compression is known, but not to this program.
    #[error("the payload is compressed with {compression}; gzip, xz, zstd and lz4 are supported")]
    Unsupported {
        /// The format.
        compression: Compression,
    },
    /// The compression is not known.
    #[error("the payload starts with bytes {magic:02x?}, which are those of no known compression")]
    Unknown {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// The payload is too short to be anything.
    #[error("the payload has {length} bytes, too few for a compressed kernel and its size")]
    TooShort {
        /// Its length.
        length: usize,
    },
    /// The payload claims to become larger than any kernel.
    #[error(
        "the payload says at its end that the kernel has {declared} bytes, more than the limit of {MAX_DECOMPRESSED_SIZE}"
    )]
    TooLarge {
        /// The size that the payload states.
        declared: usize,
    },
    /// There is no memory for the kernel.
    #[error("no memory for the kernel's {declared} bytes")]
    Memory {
        /// The size that the payload states.
        declared: usize,
        /// What the allocator says.
        #[source]
        source: TryReserveError,
    },
    /// The stream is damaged, or it asks for more than what it may have.
    #[error("the {compression} stream does not decompress to the {declared} bytes that it ends with")]
    Stream {
        /// The format.
        compression: Compression,
        /// The size that the payload states.
        declared: usize,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// A block of an lz4 stream is damaged.
    #[error("the lz4 block at {offset:#x} of the payload does not decompress to at most {limit} bytes")]
    Lz4Block {
        /// Offset of the block in the payload.
        offset: usize,
        /// How many bytes it may become.
        limit: usize,
        /// What the decoder says.
        #[source]
        source: lz4_flex::block::DecompressError,
    },
    /// A block of an lz4 stream is longer than the stream.
    #[error("the lz4 block at {offset:#x} of the payload says that it has {length} bytes, and {left} are left")]
    Lz4BlockOutside {
        /// Offset of the block in the payload.
        offset: usize,
        /// The length that it states.
        length: usize,
        /// How many bytes there are.
        left: usize,
    },
    /// The stream yields more than what the payload states.
    #[error("the {compression} stream yields more than the {declared} bytes that the payload states at its end")]
    Longer {
        /// The format.
        compression: Compression,
        /// The size that the payload states.
        declared: usize,
    },
    /// The stream yields less than what the payload states.
    #[error("the {compression} stream yields {actual} bytes, and the payload states {declared} at its end")]
    Shorter {
        /// The format.
        compression: Compression,
        /// The size that the payload states.
        declared: usize,
        /// How many bytes came.
        actual: usize,
    },
    /// The payload does not end with its stream.
    #[error("the {compression} stream ends {left} bytes before the payload does")]
    Trailing {
        /// The format.
        compression: Compression,
        /// How many bytes are left over.
        left: usize,
    },
}

/// Decompresses the payload of a bzImage. One that is not compressed is taken as it is, as the boot protocol allows.
pub(super) fn decompress(payload: &[u8]) -> Result<Cow<'_, [u8]>, DecompressError> {
    if elf::is_elf(payload) {
        return Ok(Cow::Borrowed(payload));
    }
    let (Some(magic), Some((stream, size))) = (payload.first_chunk(), payload.split_last_chunk::<SIZE_BYTES>()) else {
        return Err(DecompressError::TooShort { length: payload.len() });
    };
    let compression = Compression::identify(payload).ok_or(DecompressError::Unknown { magic: *magic })?;
    let (decode, input): (Decoder, _) = match compression {
        // The size belongs to the stream.
        Compression::Gzip => (gzip, payload),
        Compression::Xz => (xz, stream),
        Compression::Zstd => (zstd, stream),
        Compression::Lz4 => (lz4, stream),
        Compression::Lz4Frame | Compression::Bzip2 | Compression::Lzma | Compression::Lzo => {
            return Err(DecompressError::Unsupported { compression });
        }
    };
    let declared = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
    if declared > MAX_DECOMPRESSED_SIZE {
        return Err(DecompressError::TooLarge { declared });
    }
    let (output, left) = decode(input, declared)?;
    if output.len() > declared {
        return Err(DecompressError::Longer { compression, declared });
    }
    if output.len() < declared {
        return Err(DecompressError::Shorter { compression, declared, actual: output.len() });
    }
    if left > 0 {
        return Err(DecompressError::Trailing { compression, left });
    }
    Ok(Cow::Owned(output))
}

/// Decompresses an input to as many bytes as declared, or to more or less if that can't be. Returns the output, and how
/// many bytes of the input are left over.
type Decoder = fn(&[u8], usize) -> Result<(Vec<u8>, usize), DecompressError>;

fn gzip(input: &[u8], declared: usize) -> Result<(Vec<u8>, usize), DecompressError> {
    let mut decoder = flate2::bufread::GzDecoder::new(input);
    let output = read_up_to(&mut decoder, Compression::Gzip, input.len(), declared)?;
    Ok((output, decoder.get_ref().len()))
}

fn xz(input: &[u8], declared: usize) -> Result<(Vec<u8>, usize), DecompressError> {
    let mut decoder = lzma_rust2::XzReader::new_mem_limit(input, false, XZ_MEMORY_LIMIT_KIB);
    let output = read_up_to(&mut decoder, Compression::Xz, input.len(), declared)?;
    Ok((output, decoder.inner().len()))
}

/// Decompresses in one go, without a window apart from the output: all frames, and nothing but frames.
fn zstd(input: &[u8], declared: usize) -> Result<(Vec<u8>, usize), DecompressError> {
    let stream_error = |source| DecompressError::Stream { compression: Compression::Zstd, declared, source };
    let mut output = reserve(declared, declared)?;
    let mut decoder = zstd::bulk::Decompressor::new().map_err(stream_error)?;
    decoder.decompress_to_buffer(input, &mut output).map_err(stream_error)?;
    Ok((output, 0))
}

/// Decompresses legacy frames. They have neither an end mark nor a checksum, so blocks come until the input ends.
fn lz4(input: &[u8], declared: usize) -> Result<(Vec<u8>, usize), DecompressError> {
    let mut output = reserve(declared.min(input.len().saturating_mul(USUAL_RATIO)), declared)?;
    let mut rest = input;
    while !rest.is_empty() {
        let offset = input.len() - rest.len();
        let outside = |length, left| DecompressError::Lz4BlockOutside { offset, length, left };
        let (&length, blocks) = rest.split_first_chunk().ok_or(outside(size_of::<u32>(), rest.len()))?;
        rest = blocks;
        if length == LZ4_LEGACY_MAGIC {
            continue;
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        let (block, blocks) = rest.split_at_checked(length).ok_or(outside(length, rest.len()))?;
        rest = blocks;

        // Clearing no more than what the block can fill keeps a million tiny blocks from costing a million times 8 MiB.
        let start = output.len();
        let limit = LZ4_BLOCK_SIZE.min(block.len().saturating_mul(LZ4_MAX_RATIO)).min(declared - start);
        output.try_reserve(limit).map_err(|source| DecompressError::Memory { declared, source })?;
        output.resize(start + limit, 0);
        let written = lz4_flex::block::decompress_into(block, &mut output[start..])
            .map_err(|source| DecompressError::Lz4Block { offset, limit, source })?;
        output.truncate(start + written);
    }
    Ok((output, 0))
}

/// Reads to the end of the stream, where decoders verify checksums, but at most one byte past the declared size.
fn read_up_to(
    decoder: &mut impl Read,
    compression: Compression,
    input: usize,
    declared: usize,
) -> Result<Vec<u8>, DecompressError> {
    let mut output = reserve(declared.min(input.saturating_mul(USUAL_RATIO)), declared)?;
    decoder.take(declared as u64 + 1).read_to_end(&mut output).map_err(|source| DecompressError::Stream {
        compression,
        declared,
        source,
    })?;
    Ok(output)
}

fn reserve(capacity: usize, declared: usize) -> Result<Vec<u8>, DecompressError> {
    let mut output = Vec::new();
    output.try_reserve_exact(capacity).map_err(|source| DecompressError::Memory { declared, source })?;
    Ok(output)
}
