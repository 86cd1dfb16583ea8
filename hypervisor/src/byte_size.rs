//! Sizes as errors tell them: exact, and in the largest unit that leaves no remainder.

use std::fmt;

/// So many bytes, written as people write sizes: `512 MiB`, `4097 bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        match self.0 {
            0 => f.write_str("0 bytes"),
            1 => f.write_str("1 byte"),
            size => match UNITS.get((size.trailing_zeros() / 10).saturating_sub(1) as usize) {
                Some(unit) if size.is_multiple_of(1024) => {
                    write!(f, "{} {unit}", size >> (size.trailing_zeros() / 10 * 10))
                }
                _ => write!(f, "{size} bytes"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        for (size, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (4097, "4097 bytes"),
            (0x10_1000, "1028 KiB"),
            (100 << 40, "100 TiB"),
            (3 << 62, "12 EiB"),
            (u64::MAX, "18446744073709551615 bytes"),
        ] {
            assert_eq!(ByteSize(size).to_string(), text);
        }
    }
}
