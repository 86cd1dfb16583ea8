//! The `vmm` crate's machine on real KVM, steered from inside its own process, with a guest whose processors all work at
//! once ([`kvm_tests::swarm`]).

mod bed;
mod life;
mod pause;
mod processors;

use std::process::ExitCode;

use kvm_tests::trial::trial;
use libtest_mimic::Arguments;

/// A named test.
type Test = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Warnings of machines, which tell why one ended.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    let tests = [processors::TESTS, pause::TESTS, life::TESTS];
    let trials = tests.into_iter().flatten().map(|(name, test)| trial(name, *test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
