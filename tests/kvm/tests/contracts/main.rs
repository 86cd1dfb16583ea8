//! Contracts: what the `hypervisor` traits promise about private memory, seen by a guest that touches pages and by a
//! host that looks through its mapping.
//!
//! Each contract runs twice from the same code, on this host's KVM (`kvm::`) and on the model (`model::`), which needs no
//! KVM. The names start with a letter: C for conversions, E for exits, F for failures on order, N for what no
//! other suite looks at, P for populating ahead, R for regions and what is refused.

mod c;
mod c_many;
mod e;
mod f;
mod n;
mod p;
mod r;

use std::process::ExitCode;

use kvm_tests::backend::Backend;
use kvm_tests::trial::trial;
use libtest_mimic::{Arguments, Trial};

/// A named contract.
type Contract = (&'static str, fn(&Backend) -> anyhow::Result<()>);

/// Where the memory under test lies; KVM can map it in pages of 2 MiB.
const BASE: u64 = 1 << 30;

const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let contracts =
        [c::CONTRACTS, c_many::CONTRACTS, e::CONTRACTS, f::CONTRACTS, n::CONTRACTS, p::CONTRACTS, r::CONTRACTS];
    let trials = contracts.into_iter().flatten().flat_map(|contract| [on_kvm(*contract), on_model(*contract)]);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn on_kvm((name, contract): Contract) -> Trial {
    trial(&format!("kvm::{name}"), move || contract(&Backend::kvm()?))
}

fn on_model((name, contract): Contract) -> Trial {
    trial(&format!("model::{name}"), move || contract(&Backend::model()))
}
