//! What the launch leaves behind, and what of it a guest could abuse.

use arch::x86_64::map::LAUNCH_PORT;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::HostileGuest;

use crate::{MIB, OPEN, SECRET, Test, finish, pages};

pub const TESTS: &[Test] =
    &[("all_of_ram_is_private_once_the_kernel_runs", all_private), ("the_launch_port_works_once", launch_port)];

fn all_private() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let statistics = guest.statistics()?;
    expect::equal("private memory", statistics.private_bytes, 64 * MIB)?;
    expect::equal("shared memory", statistics.shared_bytes, 0)?;
    // Nothing that the launch put there is left: no command line, no boot parameters, no kernel.
    expect::equal("memory that the VMM's shared side takes", guest.shared_memory()?.allocated()?, 0)?;
    finish(guest)
}

fn launch_port() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let (private, shared) = (pages(32 * MIB, 1)?, pages(40 * MIB, 1)?);
    guest.fills(Private, private, SECRET)?;
    guest.converts(shared, Shared)?;
    guest.fills(Shared, shared, OPEN)?;
    let before = guest.statistics()?;
    guest.writes_port(LAUNCH_PORT, 1)?;
    expect::equal("statistics", guest.statistics()?, before)?;
    guest.sees(Private, private, SECRET)?;
    guest.sees(Shared, shared, OPEN)?;
    finish(guest)
}
