//! E: exits for memory faults.

use std::time::Duration;

use hypervisor::PageState::{Private, Shared};
use hypervisor::{GpaRange, Hypervisor};
use kvm_tests::PAGE;
use kvm_tests::expect;
use kvm_tests::guest::Guest;
use kvm_tests::memory::TestMemory;
use kvm_tests::pattern::Pattern;

use crate::{Contract, create_vm};

const BASE: u64 = 1 << 30;
const SIZE: u64 = 16 * PAGE;
/// Far more than it takes; the guest that is waited for is stuck then.
const LIMIT: Duration = Duration::from_secs(60);

const HOST: Pattern = Pattern::new(0x1057_0000);
const GUEST: Pattern = Pattern::new(0x6e57_0000);

pub const CONTRACTS: &[Contract] = &[
    ("e1_a_slot_removed_while_the_guest_reads_it_privately_is_a_private_fault", e1),
    ("e2_a_private_page_without_a_guest_memfd_is_a_private_fault", e2),
];

/// The slot goes while the guest reads: it exits with the page it reads, as a private access. Attributes and contents
/// outlive the slot: added again, it is private and as it was.
fn e1(hypervisor: &dyn Hypervisor) -> anyhow::Result<()> {
    let vm = create_vm(hypervisor)?;
    let mut guest = Guest::new(&*vm, 0)?;
    let memory = TestMemory::with_both_backings(&vm, 1, GpaRange::new(BASE, SIZE)?)?;
    memory.set(memory.all(), Private)?;
    guest.writes(memory.all(), GUEST)?.done()?;

    let page = memory.part(5 * PAGE, PAGE)?;
    let reader = guest.reads_on(page)?;
    reader.reads_a_thousand_times(LIMIT)?;
    memory.remove_region()?;
    let mut stopped = reader.stops_within(LIMIT)?;
    stopped.outcome.private_fault_at(page)?;
    expect::equal("the last word read", stopped.last, GUEST.word(page.start()))?;

    memory.add_region()?;
    stopped.guest.sees(memory.all(), GUEST)?.done()
}

/// A private page in a slot that has no guest_memfd stops reads and writes, and nothing else does; shared again, the
/// access that was stopped goes through.
fn e2(hypervisor: &dyn Hypervisor) -> anyhow::Result<()> {
    let vm = create_vm(hypervisor)?;
    let mut guest = Guest::new(&*vm, 0)?;
    let memory = TestMemory::without_guest_memfd(&vm, 1, GpaRange::new(BASE, SIZE)?)?;
    memory.host_writes(memory.all(), HOST)?;
    let page = memory.part(3 * PAGE, PAGE)?;
    guest.sees(memory.all(), HOST)?.done()?;
    memory.set(page, Private)?;

    guest.writes(page, GUEST)?.private_fault_at(page)?;
    for neighbour in memory.around(page)? {
        guest.sees(neighbour, HOST)?.done()?;
    }
    memory.host_sees(memory.all(), HOST)?;
    // The whole range this time: the guest gets as far as the private page, and stays there.
    guest.sees(memory.all(), HOST)?.private_fault_at(page)?;
    guest.resume()?.private_fault_at(page)?;
    memory.set(page, Shared)?;
    guest.resume()?.done()
}
