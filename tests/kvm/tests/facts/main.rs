//! Kernel facts: what real KVM does when it is asked directly, illegal arguments included.
//!
//! Each test is named by its letter: A for attributes, G for guest_memfd files, R for memory regions, V for VM types. Where a fact depends
//! on the kernel, the test follows what that kernel advertises.

mod a;
mod g;
mod r;
mod v;

use libtest_mimic::Arguments;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let trials = [a::trials(), g::trials(), r::trials(), v::trials()];
    let trials = trials.into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
