//! Says anything a guest, a processor or KVM can say about the state of pages, to a guest of any layout.
//!
//! The answer must be the one that the oracle of the property tests gives, which knows RAM as two ranges and calculates
//! in 128 bits: a request is exactly what was asked for and all of it is RAM, anything else is refused.

#![no_main]

#[path = "conversion_request/input.rs"]
mod input;
#[path = "../../arch/tests/private_faults/oracle.rs"]
mod oracle;

use input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: Input| {
    input.check();
});
