//! The REST API of the real `umbra` with real guests under `isolation=software`.
//!
//! Requests go through the client that follows the API's document, and some byte by byte as `ch-remote` sends them. What the
//! API says of memory is compared with what the guest sees and what the VMM's memory holds when it is read from outside.

mod bed;
mod devices;
mod life;
mod many;
mod memory;
mod steering;
mod wire;

use std::process::ExitCode;

use kvm_tests::trial::trial;
use libtest_mimic::Arguments;

/// A named test.
type Test = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = [devices::TESTS, life::TESTS, memory::TESTS, many::TESTS, steering::TESTS, wire::TESTS];
    let trials = tests.into_iter().flatten().map(|(name, test)| trial(name, *test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
