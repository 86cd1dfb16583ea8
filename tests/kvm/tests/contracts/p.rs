//! P: memory populated ahead of the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, anyhow, bail, ensure};
use hypervisor::PageState::{Private, Shared};
use hypervisor::{Capability, Error, GpaRange, PreFaultError, Vcpu};
use kvm_tests::PAGE;
use kvm_tests::backend::{Backend, TestVm};
use kvm_tests::expect;
use kvm_tests::memory::TestMemory;
use kvm_tests::pattern::Pattern;

use crate::{BASE, Contract};

const SIZE: u64 = 2 << 20;
const HOST: Pattern = Pattern::new(0x1057_0000);
const GUEST: Pattern = Pattern::new(0x6e57_0000);

pub const CONTRACTS: &[Contract] = &[
    ("p1_all_of_2_mib_is_populated_in_the_state_it_has", p1),
    ("p2_a_range_that_leaves_the_slot_is_populated_up_to_its_end", p2),
    ("p3_where_nothing_is_nothing_is_populated", p3),
    ("p4_while_the_slot_comes_and_goes_it_fails_or_works_and_works_in_the_end", p4),
    ("p5_a_vcpu_that_never_runs_populates_while_another_writes_and_nothing_is_lost", p5),
];

fn vm(backend: &Backend) -> anyhow::Result<TestVm> {
    backend.require(&[Capability::PreFault])?;
    backend.create_private_vm()
}

/// Populates a range to its end. The size of what was not done comes with the error.
fn populate(vcpu: &dyn Vcpu, range: GpaRange) -> anyhow::Result<Result<(), (u64, PreFaultError)>> {
    let mut done = 0;
    while done < range.len() {
        let left = range.len() - done;
        match vcpu.pre_fault(GpaRange::new(range.start() + done, left)?) {
            Ok(0) => bail!("nothing was done, and no error told"),
            Ok(more) => done += more,
            Err(Error::PreFault { source: PreFaultError::Interrupted, .. }) => {}
            Err(Error::PreFault { source, .. }) => return Ok(Err((left, source))),
            Err(other) => return Err(other.into()),
        }
        ensure!(done <= range.len(), "{done:#x} bytes of {range} are done");
    }
    Ok(Ok(()))
}

fn fails(vcpu: &dyn Vcpu, range: GpaRange, left: u64, is_it: fn(&PreFaultError) -> bool) -> anyhow::Result<()> {
    match populate(vcpu, range)? {
        Err((found, error)) if found == left && is_it(&error) => Ok(()),
        other => bail!("populating {range} came to {other:?}, expected an error with {left:#x} bytes left"),
    }
}

/// Pages get memory in the state that they have, and nothing else: contents stay, the other side gets none.
fn p1(backend: &Backend) -> anyhow::Result<()> {
    let vm = vm(backend)?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, 2 * SIZE)?)?;
    let (shared, private) = (memory.part(0, SIZE)?, memory.part(SIZE, SIZE)?);
    memory.set(private, Private)?;
    let held = memory.part(PAGE, PAGE)?;
    memory.host_writes(held, HOST)?;
    guest.writes(memory.part(SIZE + PAGE, PAGE)?, GUEST)?.done()?;

    expect::equal("shared memory held before", memory.held(Shared)?, PAGE)?;
    for range in [shared, private] {
        if let Err((left, error)) = populate(guest.vcpu(), range)? {
            bail!("{left:#x} bytes of {range} were not populated: {error}");
        }
        expect::equal(format!("shared memory held after {range}"), memory.held(Shared)?, SIZE)?;
    }
    if let Backend::Model(_) = backend {
        expect::equal("private memory held", memory.held(Private)?, SIZE)?;
    }
    guest.sees(held, HOST)?.done()?;
    guest.sees(memory.part(SIZE + PAGE, PAGE)?, GUEST)?.done()?;
    guest.sees(memory.part(SIZE + 2 * PAGE, SIZE - 2 * PAGE)?, Pattern::ZEROS)?.done()?;
    memory.host_sees(private, Pattern::ZEROS)
}

/// One page of two lies outside: the first is done, the second is refused, and says whether it was for lack of a region
/// or of private memory.
fn p2(backend: &Backend) -> anyhow::Result<()> {
    let vm = vm(backend)?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    let last = memory.part(SIZE - PAGE, PAGE)?;
    let beyond = GpaRange::new(last.end(), PAGE)?;
    let both = GpaRange::new(last.start(), 2 * PAGE)?;
    for state in [Shared, Private] {
        memory.set(last, state)?;
        fails(guest.vcpu(), both, PAGE, |error| matches!(error, PreFaultError::NoRegion))?;
    }
    memory.set(beyond, Private)?;
    fails(guest.vcpu(), both, PAGE, |error| matches!(error, PreFaultError::NoBacking))
}

fn p3(backend: &Backend) -> anyhow::Result<()> {
    let vm = vm(backend)?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::without_guest_memfd(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    let outside = GpaRange::new(memory.all().end(), 2 * PAGE)?;
    fails(guest.vcpu(), outside, 2 * PAGE, |error| matches!(error, PreFaultError::NoRegion))?;
    // Inside, and yet nothing is behind it.
    memory.set(memory.part(0, PAGE)?, Private)?;
    fails(guest.vcpu(), memory.all(), SIZE, |error| matches!(error, PreFaultError::NoBacking))?;
    expect::equal("shared memory held", memory.held(Shared)?, 0)
}

fn p4(backend: &Backend) -> anyhow::Result<()> {
    const ROUNDS: u32 = 100;
    let vm = vm(backend)?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, SIZE)?)?;
    memory.set(memory.all(), Private)?;
    guest.writes(memory.all(), GUEST)?.done()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let populating = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                match populate(guest.vcpu(), memory.all())? {
                    // Without a region, a private page has nothing behind it.
                    Ok(()) | Err((_, PreFaultError::Again | PreFaultError::NoBacking)) => {}
                    Err((_, other)) => return Err(other).context("while the slot came and went"),
                }
            }
            Ok(())
        });
        let toggled = (0..ROUNDS).try_for_each(|_| {
            memory.remove_region()?;
            memory.add_region()
        });
        over.store(true, Ordering::Release);
        populating.join().map_err(|_| anyhow!("the thread panicked"))??;
        toggled
    })?;
    expect::equal("what came of it in the end", populate(guest.vcpu(), memory.all())?.is_ok(), true)?;
    guest.sees(memory.all(), GUEST)?.done()
}

/// A vCPU of which nothing was said but that it exists populates as well as any, and takes nothing from one that runs.
fn p5(backend: &Backend) -> anyhow::Result<()> {
    let vm = vm(backend)?;
    let mut guest = vm.guest(0, 0)?;
    let idle = vm.vm().create_vcpu(1)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, 2 * SIZE)?)?;
    memory.set(memory.all(), Private)?;
    let (written, rest) = (memory.part(0, SIZE)?, memory.part(SIZE, SIZE)?);
    let all = memory.all();
    thread::scope(|scope| {
        let populating = scope.spawn(move || populate(&*idle, all));
        guest.writes(written, GUEST)?.done()?;
        match populating.join().map_err(|_| anyhow!("the thread panicked"))?? {
            Ok(()) => Ok(()),
            Err((left, error)) => bail!("{left:#x} bytes were not populated: {error}"),
        }
    })?;
    guest.sees(written, GUEST)?.done()?;
    guest.sees(rest, Pattern::ZEROS)?.done()?;
    expect::equal("shared memory held", memory.held(Shared)?, 0)?;
    if let Backend::Model(_) = backend {
        expect::equal("private memory held", memory.held(Private)?, 2 * SIZE)?;
    }
    Ok(())
}
