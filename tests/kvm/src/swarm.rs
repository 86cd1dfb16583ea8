//! A guest whose processors all convert memory as fast as they can, in ranges that overlap (case N7 of the conformance
//! list).
//!
//! Its kernel is a few hundred bytes of code (`program.rs`). The boot processor starts all others, in the way that the
//! isolation has for it, and then they all do the same, for ever: make sixteen pages shared, write to each, make them
//! private, write to each, twelve of them pages of a neighbour's. After every sixteenth round a processor writes its
//! number, a digit, to the serial port. Where there is nothing to convert they only write.
//!
//! It has no interrupt descriptors, so whatever faults, and a non-maskable interrupt, resets it.

mod program;

use hypervisor::{GpaRange, PAGE_SIZE, RangeError};

use crate::hostile::image;

pub use program::ROUNDS_BETWEEN_SIGNS;

/// The number of x86-64 in ELF's register.
const X86_64: u16 = 62;

/// The most processors that it can have: each has a digit.
pub const MAX_PROCESSORS: u8 = 9;

/// The guest's kernel. Its command line is the number of processors, a digit. With an `i` behind it, it knows no mailbox
/// and starts them by INIT and SIPI whatever the isolation.
pub fn vmlinux() -> Vec<u8> {
    image::elf(X86_64, program::code(), program::SIZE)
}

/// The pages that a processor converts.
///
/// # Errors
/// None for a processor that there is.
pub fn pages_of(processor: u8) -> Result<GpaRange, RangeError> {
    GpaRange::new(program::PAGES + u64::from(processor) * program::STEP, program::COUNT * PAGE_SIZE)
}

/// The sign that a processor gives.
pub fn sign_of(processor: u8) -> char {
    char::from(b'0' + processor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::x86_64::image::KernelImage;

    #[test]
    fn it_is_a_kernel_and_its_ranges_overlap() {
        let file = vmlinux();
        assert_eq!(KernelImage::parse(&file).unwrap().segments().count(), 1);
        let (first, second) = (pages_of(0).unwrap(), pages_of(1).unwrap());
        assert_eq!(first.intersection(second).unwrap().pages(), 12);
    }
}
