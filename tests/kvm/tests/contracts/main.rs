//! Contracts: what the `hypervisor` traits promise about private memory, seen by a guest that touches pages and by a
//! host that looks through its mapping.
//!
//! Each contract runs twice from the same code, on this host's KVM (`kvm::`) and on the model (`model::`), which needs no
//! KVM. The names start with a letter: C for conversions, E for exits, F for failures on order, I for interrupts and events, M for mismatches by type
//! of VM (which only the model has), N for what no other suite looks at, P for populating ahead, R for regions and what is
//! refused.

mod c;
mod c_many;
mod e;
mod f;
mod i;
mod m;
mod n;
mod p;
#[path = "../../../../hypervisor/examples/private_page.rs"]
mod private_page;
mod r;

use std::process::ExitCode;

use hypervisor::model::ModelHypervisor;
use kvm_tests::backend::Backend;
use kvm_tests::trial::trial;
use libtest_mimic::{Arguments, Completion, Trial};
use m::OnModel;

/// A named contract.
type Contract = (&'static str, fn(&Backend) -> anyhow::Result<()>);

/// Where the memory under test lies; KVM can map it in pages of 2 MiB.
const BASE: u64 = 1 << 30;

const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let contracts = [
        c::CONTRACTS,
        c_many::CONTRACTS,
        e::CONTRACTS,
        f::CONTRACTS,
        i::CONTRACTS,
        n::CONTRACTS,
        p::CONTRACTS,
        r::CONTRACTS,
    ];
    let trials = contracts.into_iter().flatten().flat_map(|contract| [on_kvm(*contract), on_model(*contract)]);
    let trials = trials
        .chain([e::ON_KVM, i::ON_KVM].concat().into_iter().map(on_kvm))
        .chain(m::CONTRACTS.iter().flat_map(|contract| [not_on_kvm(contract.0), on_model_only(*contract)]));
    let example = trial("kvm::the_example_of_a_private_page_runs", || {
        Backend::kvm()?.create_private_vm()?;
        private_page::main().map_err(anyhow::Error::from_boxed)
    });
    libtest_mimic::run(&arguments, trials.chain([example]).collect()).exit_code()
}

fn on_kvm((name, contract): Contract) -> Trial {
    trial(&format!("kvm::{name}"), move || contract(&Backend::kvm()?))
}

fn on_model((name, contract): Contract) -> Trial {
    trial(&format!("model::{name}"), move || contract(&Backend::model()))
}

fn on_model_only((name, contract): OnModel) -> Trial {
    trial(&format!("model::{name}"), move || contract(&ModelHypervisor::new()))
}

/// Not even the lab can run it.
fn not_on_kvm(name: &str) -> Trial {
    const REASON: &str = "only the model has VMs of every type, with a guest that makes any access";
    Trial::ignorable_test(format!("kvm::{name}"), || Ok(Completion::ignored_with(REASON)))
}
