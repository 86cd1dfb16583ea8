//! E: exits for memory faults.

use std::time::Duration;

use anyhow::ensure;
use hypervisor::PageState::{Private, Shared};
use hypervisor::x86_64::Registers;
use hypervisor::{Exit, GpaRange, Region, Slice};
use kvm_tests::PAGE;
use kvm_tests::backend::Backend;
use kvm_tests::expect;
use kvm_tests::guest::{Outcome, REPORT_DOUBLE_FAULT};
use kvm_tests::memory::TestMemory;
use kvm_tests::pattern::{LINE, Pattern};

use crate::{BASE, Contract};

const SIZE: u64 = 16 * PAGE;
/// Far more than it takes; the guest that is waited for is stuck then.
const LIMIT: Duration = Duration::from_secs(60);

const HOST: Pattern = Pattern::new(0x1057_0000);
const GUEST: Pattern = Pattern::new(0x6e57_0000);

pub const CONTRACTS: &[Contract] = &[
    ("e1_a_slot_removed_while_the_guest_reads_it_privately_is_a_private_fault", e1),
    ("e2_a_private_page_without_a_guest_memfd_is_a_private_fault", e2),
    ("e3_a_general_protection_fault_comes_before_the_access_that_faulted", e3),
    ("e4_a_shared_page_without_a_backing_is_an_error_without_an_address", e4),
    ("e5_a_shared_access_without_a_slot_is_mmio", e5),
];

/// Contracts of KVM alone.
pub const ON_KVM: &[Contract] = &[("e3_a_fault_that_cannot_be_delivered_becomes_a_double_fault", e3_stack)];

/// The slot goes while the guest reads: it exits with the page it reads, as a private access. Attributes and contents
/// outlive the slot: added again, it is private and as it was.
fn e1(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
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
fn e2(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::without_guest_memfd(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
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

/// The guest is told that its access was refused: it takes the fault at that very instruction, nothing is written, and
/// it can go on with something else.
fn e3(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::without_guest_memfd(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    memory.host_writes(memory.all(), HOST)?;
    let page = memory.part(3 * PAGE, PAGE)?;
    memory.set(page, Private)?;

    for _ in 0..2 {
        guest.writes(page, GUEST)?.private_fault_at(page)?;
        guest.vcpu().inject_general_protection()?;
        expect::equal("what the guest takes", guest.resume()?, Outcome::GeneralProtection)?;
        memory.host_sees(memory.all(), HOST)?;
    }
    guest.sees(memory.all(), HOST)?.private_fault_at(page)?;
    guest.vcpu().inject_general_protection()?;
    expect::equal("what the guest takes", guest.resume()?, Outcome::GeneralProtection)?;
    memory.set(page, Shared)?;
    guest.sees(memory.all(), HOST)?.done()
}

/// The guest's stack is where it may not write, either, so that the first fault can't be delivered: it takes a double fault,
/// once its stack is in order. The model has no stacks.
fn e3_stack(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::without_guest_memfd(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    let (page, stack) = (memory.part(3 * PAGE, PAGE)?, memory.part(5 * PAGE, PAGE)?);
    memory.set(memory.all(), Private)?;

    guest.writes(page, GUEST)?.private_fault_at(page)?;
    let registers = guest.vcpu().registers()?;
    guest.vcpu().set_registers(&Registers { rsp: stack.end(), ..registers })?;
    guest.vcpu().inject_general_protection()?;
    guest.resume()?.private_fault_at(stack)?;
    // The double fault can't be delivered, either, and nothing is lower than that.
    for _ in 0..2 {
        guest.vcpu().inject_general_protection()?;
        guest.resume()?.private_fault_at(stack)?;
    }
    guest.vcpu().set_registers(&registers)?;
    let exit = guest.vcpu().run()?;
    let reported = matches!(exit, Exit::IoOut { port: REPORT_DOUBLE_FAULT, .. });
    ensure!(reported, "{exit:?}, expected the report of a double fault");
    memory.host_sees(memory.all(), Pattern::ZEROS)
}

/// A region with private memory only: while its pages are shared, an access fails, and nobody says where.
fn e4(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let range = GpaRange::new(BASE, SIZE)?;
    let private = Some(Slice { backing: vm.vm().create_guest_memfd(SIZE)?, offset: 0 });
    vm.vm().add_region(1, &Region { range, shared: None, private })?;
    expect::equal("a write", guest.writes(range, GUEST)?, Outcome::NoBacking)?;
    expect::equal("a read", guest.sees(range, Pattern::ZEROS)?, Outcome::NoBacking)?;
    vm.vm().set_attribute(range, Private)?;
    guest.resume()?.done()?;
    guest.writes(range, GUEST)?.done()?;
    guest.sees(range, GUEST)?.done()
}

/// Where no memory is, and nothing says "private", reads and writes are the VMM's: what it leaves alone reads as all
/// ones.
fn e5(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let range = GpaRange::new(BASE, PAGE)?;
    let gpa = range.start();
    expect::equal("a read", guest.sees(range, GUEST)?, Outcome::Mmio { gpa, written: None })?;
    expect::equal("the word read", guest.resume()?, Outcome::Differs { gpa, found: u32::MAX })?;
    for address in [gpa, gpa + LINE] {
        let outcome = if address == gpa { guest.writes(range, GUEST)? } else { guest.resume()? };
        expect::equal("a write", outcome, Outcome::Mmio { gpa: address, written: Some(GUEST.word(address)) })?;
    }
    // Another page: KVM remembers where it found no memory, and looks at no attribute there.
    let untouched = GpaRange::new(range.end(), PAGE)?;
    vm.vm().set_attribute(untouched, Private)?;
    guest.sees(untouched, GUEST)?.private_fault_at(untouched)
}
