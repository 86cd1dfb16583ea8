//! The VMM's memory core on KVM and on the model: the same tests, with guests that touch pages.
//!
//! N1, N4 and N6 are cases that no public suite covers: implicit conversions granted and refused, ranges over several
//! slots and holes that fail in the middle, each error of each system call. The race lets devices, vCPUs and the host at
//! the same pages, and must fail once the memory core no longer waits for devices.

mod bed;
mod faults;
mod implicit;
mod race;
mod sequences;

use std::process::ExitCode;

use kvm_tests::backend::Backend;
use kvm_tests::trial::trial;
use libtest_mimic::{Arguments, Trial};
use rustix::io::Errno;

const EPERM: i32 = Errno::PERM.raw_os_error();
const EINTR: i32 = Errno::INTR.raw_os_error();
const EIO: i32 = Errno::IO.raw_os_error();
const EAGAIN: i32 = Errno::AGAIN.raw_os_error();
const ENOMEM: i32 = Errno::NOMEM.raw_os_error();
const EINVAL: i32 = Errno::INVAL.raw_os_error();

/// A named test.
type Test = (&'static str, fn(&Backend) -> anyhow::Result<()>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = [implicit::TESTS, faults::TESTS, race::TESTS, sequences::TESTS];
    let trials = tests.into_iter().flatten().flat_map(|test| [on_kvm(*test), on_model(*test)]);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn on_kvm((name, test): Test) -> Trial {
    trial(&format!("kvm::{name}"), move || test(&Backend::kvm()?))
}

fn on_model((name, test): Test) -> Trial {
    trial(&format!("model::{name}"), move || test(&Backend::model()))
}
