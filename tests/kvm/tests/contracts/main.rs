//! Contracts: what the `hypervisor` traits promise about private memory, seen by a guest that touches pages and by a
//! host that looks through its mapping.
//!
//! Each contract takes any [`Hypervisor`]; the names start with a letter: C for conversions, E for exits.

mod c;
mod e;

use std::process::ExitCode;
use std::sync::Arc;

use hypervisor::{Capability, Hypervisor, Vm, VmType};
use kvm_tests::requirement::{require, require_caps};
use kvm_tests::trial::trial;
use libtest_mimic::{Arguments, Trial};

/// A named contract.
type Contract = (&'static str, fn(&dyn Hypervisor) -> anyhow::Result<()>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let contracts = c::CONTRACTS.iter().chain(e::CONTRACTS);
    libtest_mimic::run(&arguments, contracts.copied().map(on_kvm).collect()).exit_code()
}

fn on_kvm((name, contract): Contract) -> Trial {
    trial(name, move || contract(&require_caps(&[])?))
}

/// A VM whose pages can be private, on any processor.
fn create_vm(hypervisor: &dyn Hypervisor) -> anyhow::Result<Arc<dyn Vm>> {
    let needed = [
        Capability::VmType(VmType::SwProtected),
        Capability::UserMemory2,
        Capability::GuestMemfd,
        Capability::MemoryAttributes,
        Capability::MemoryFaultInfo,
    ];
    require(hypervisor.caps(), &needed)?;
    Ok(hypervisor.create_vm(VmType::SwProtected)?)
}
