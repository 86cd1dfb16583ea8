//! N: what no other suite looks at.

use anyhow::Context;
use hypervisor::PageState::{Private, Shared};
use hypervisor::{Capability, GpaRange, MapGpaRangeReply};
use kvm_tests::PAGE;
use kvm_tests::backend::Backend;
use kvm_tests::expect;
use kvm_tests::guest::Answered;
use kvm_tests::memory::TestMemory;
use kvm_tests::pattern::Pattern;

use crate::{BASE, Contract};

const SIZE: u64 = 16 * PAGE;
const HOST: Pattern = Pattern::new(0x1057_0000);
const GUEST: Pattern = Pattern::new(0x6e57_0000);

pub const CONTRACTS: &[Contract] = &[
    ("n2_a_conversion_request_is_answered_as_the_vmm_replies", n2_replies),
    ("n2_a_conversion_request_that_nobody_enabled_or_that_names_no_pages_stays_inside", n2_inside),
    ("n5_attributes_outlive_the_slot", n5_outlive),
    ("n5_attributes_can_be_set_while_there_is_no_slot", n5_without_slot),
];

const EINVAL: i32 = -crate::EINVAL;
/// What KVM says of a hypercall that it does not know.
const KVM_ENOSYS: i32 = -1000;

/// The VMM sees the arguments as they are, and the guest what the VMM replies; a plain guest never hears of EAGAIN. A
/// reply that is forgotten is a refusal.
fn n2_replies(backend: &Backend) -> anyhow::Result<()> {
    backend.require(&[Capability::ExitHypercall])?;
    let vm = backend.create_private_vm()?;
    vm.vm().exit_on_map_gpa_range()?;
    let mut guest = vm.guest(0, 0)?;
    let replies = [
        (Some(MapGpaRangeReply::Done), 0),
        // No answer of an earlier request's.
        (None, EINVAL),
        (Some(MapGpaRangeReply::Invalid), EINVAL),
        (Some(MapGpaRangeReply::Again), EINVAL),
    ];
    for arguments in [[0x1000, 1, 0x10], [0x7fff_f000, u32::MAX, u32::MAX], [0xffff_f000, 1, 0]] {
        for (reply, eax) in replies {
            let answered = guest.asks(arguments, reply)?;
            let seen = Some(arguments.map(u64::from));
            expect::equal(format!("the answer to {arguments:x?} replied {reply:?}"), answered, Answered { seen, eax })?;
        }
    }
    Ok(())
}

fn n2_inside(backend: &Backend) -> anyhow::Result<()> {
    backend.require(&[Capability::ExitHypercall])?;
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let refused = |eax| Answered { seen: None, eax };
    let done = Some(MapGpaRangeReply::Done);
    expect::equal("the answer before it was enabled", guest.asks([0x1000, 1, 0], done)?, refused(KVM_ENOSYS))?;
    vm.vm().exit_on_map_gpa_range()?;
    for arguments in [[0x1001, 1, 0], [0xfff, 1, 0], [0x1000, 0, 0]] {
        let what = format!("the answer to {arguments:x?}");
        expect::equal(what, guest.asks(arguments, done)?, refused(EINVAL))?;
    }
    Ok(())
}

/// Single pages of a range are private. The slot goes and comes back, under another number, too: they still are, with what
/// the guest wrote, and the pages between them are not.
fn n5_outlive(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    memory.host_writes(memory.all(), HOST)?;
    let pages = TestMemory::pages(memory.all())?;
    for page in pages.iter().step_by(3) {
        memory.set(*page, Private)?;
        guest.writes(*page, GUEST)?.done()?;
    }
    for round in 0..2 {
        memory.remove_region()?;
        memory.add_region()?;
        for (number, page) in pages.iter().enumerate() {
            let expected = if number % 3 == 0 { GUEST } else { HOST };
            guest.sees(*page, expected)?.done().with_context(|| format!("page {number}, round {round}"))?;
        }
    }
    // All of it in one call, and the private contents are still there.
    memory.set(memory.all(), Private)?;
    memory.remove_region()?;
    memory.add_region()?;
    guest.sees(pages[3], GUEST)?.done()?;
    guest.sees(pages[4], Pattern::ZEROS)?.done()?;
    memory.host_sees(memory.all(), HOST)
}

/// An attribute that is set while no slot is there holds for the slot that comes; an access meanwhile is a private fault,
/// or finds no memory.
fn n5_without_slot(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    memory.host_writes(memory.all(), HOST)?;
    let (first, second) = (memory.part(0, PAGE)?, memory.part(PAGE, PAGE)?);
    memory.set(first, Private)?;
    guest.writes(first, GUEST)?.done()?;

    memory.remove_region()?;
    memory.set(first, Shared)?;
    memory.set(second, Private)?;
    guest.sees(second, Pattern::ZEROS)?.private_fault_at(second)?;
    memory.add_region()?;

    guest.resume()?.done()?;
    guest.sees(first, HOST)?.done()?;
    memory.set(first, Private)?;
    guest.sees(first, GUEST)?.done()?;
    // Far above everything that can ever be a slot, too.
    let far = GpaRange::new(1 << 60, 1 << 20)?;
    memory.set(far, Private)?;
    memory.set(far, Shared)
}
