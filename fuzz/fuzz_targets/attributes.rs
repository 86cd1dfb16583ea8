//! Converts, touches, moves and fails whatever guest memory has, on the model of KVM, and compares everything after each
//! step: the property tests' sequences (`vmm/tests/conversion`), with the fuzzer's imagination.

#![no_main]

#[path = "../../vmm/tests/conversion/reference.rs"]
mod reference;
#[path = "../../vmm/tests/conversion/sequence.rs"]
mod sequence;
#[path = "../../vmm/tests/conversion/world.rs"]
#[expect(dead_code, reason = "tests of the same memory use the rest")]
mod world;

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::faults::Operation;
use hypervisor::{PAGE_SIZE, PageState};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

use crate::sequence::Step;
use crate::world::Kind;

/// All pages of a small guest.
const SIZE: u64 = (1 << 20) + 48 * PAGE_SIZE;

/// Steps beyond these say nothing new, and take time.
const MAX_STEPS: usize = 48;

#[derive(Arbitrary, Debug)]
struct Input {
    kind: u8,
    steps: Vec<Code>,
}

#[derive(Arbitrary, Debug)]
enum Code {
    Convert { first: u16, count: u16, private: bool, kind: u8 },
    GuestWrite { page: u16, private: bool, word: u64 },
    GuestRead { page: u16, private: bool },
    DeviceWrite { page: u16, word: u64 },
    DeviceRead { page: u16 },
    MoveRegion { page: u16, first: u16, count: u16, private: bool },
    Fail { operation: u8, errno: u8, after: u8, times: u8, partly: u8 },
}

fuzz_target!(|input: Input| {
    let pages: Vec<u64> = (0..SIZE).step_by(PAGE_SIZE as usize).collect();
    let kinds = [Kind::Software, Kind::SwProtected, Kind::SevSnp, Kind::Tdx];
    let steps: Vec<Step> = input.steps.iter().take(MAX_STEPS).map(|code| decode(code, pages.len())).collect();
    sequence::run(kinds[usize::from(input.kind) % kinds.len()], SIZE, &pages, &steps);
});

fn decode(code: &Code, pages: usize) -> Step {
    let page = |number: u16| usize::from(number) % pages;
    let count = |number: u16| usize::from(number) % pages + 1;
    let state = |private| if private { PageState::Private } else { PageState::Shared };
    match *code {
        Code::Convert { first, count: many, private, kind } => {
            let kinds = [ConversionKind::Explicit, ConversionKind::Implicit, ConversionKind::Host];
            let kind = kinds[usize::from(kind) % kinds.len()];
            Step::Convert { first: page(first), count: count(many), to: state(private), kind }
        }
        Code::GuestWrite { page: at, private, word } => {
            Step::GuestWrite { page: page(at), access: state(private), word }
        }
        Code::GuestRead { page: at, private } => Step::GuestRead { page: page(at), access: state(private) },
        Code::DeviceWrite { page: at, word } => Step::DeviceWrite { page: page(at), word },
        Code::DeviceRead { page: at } => Step::DeviceRead { page: page(at) },
        Code::MoveRegion { page: at, first, count: many, private } => {
            Step::MoveRegion { page: page(at), first: page(first), count: count(many), to: state(private) }
        }
        Code::Fail { operation, errno, after, times, partly } => {
            let operations = [Operation::SetAttribute, Operation::DiscardShared, Operation::DiscardPrivate];
            Step::Fail {
                operation: operations[usize::from(operation) % operations.len()],
                // Any error number that Linux has.
                errno: i32::from(errno % 133) + 1,
                after: u64::from(after % 4),
                times: if times == u8::MAX { u64::MAX } else { u64::from(times % 4) + 1 },
                partly: u64::from(partly),
            }
        }
    }
}
