//! Devices, as Debian's kernel finds and uses them.

mod balloon;
mod clock;
mod console;
mod disk;
mod embedder;
mod entropy;
mod network;
mod power;
mod sockets;

use std::process::ExitCode;

use kvm_tests::trial::trial;
use libtest_mimic::Arguments;

/// A named test.
type Test = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = [
        balloon::TESTS,
        clock::TESTS,
        console::TESTS,
        disk::TESTS,
        embedder::TESTS,
        entropy::TESTS,
        network::TESTS,
        power::TESTS,
        sockets::TESTS,
    ]
    .into_iter()
    .flatten()
    .map(|(name, test)| trial(name, *test))
    .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
