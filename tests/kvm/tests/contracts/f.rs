//! F: failures that are ordered. Each does what it says and nothing else, and the next call works.

use std::sync::Arc;

use anyhow::{bail, ensure};
use hypervisor::PageState::{Private, Shared};
use hypervisor::faults::{Failure, Faults, Operation};
use hypervisor::{
    AttributeError, Capability, Error, Exit, GpaRange, PreFaultError, Region, Result, SharedMemory, Slice,
};
use kvm_tests::PAGE;
use kvm_tests::backend::{Backend, TestVm};
use kvm_tests::expect;
use kvm_tests::guest::{Guest, Outcome};
use kvm_tests::memory::TestMemory;
use kvm_tests::pattern::Pattern;
use rustix::io::Errno;

use crate::{BASE, Contract};

const SIZE: u64 = 16 * PAGE;
const HOST: Pattern = Pattern::new(0x1057_0000);
const GUEST: Pattern = Pattern::new(0x6e57_0000);

/// What a system call may well fail with.
const ERRNOS: [Errno; 5] = [Errno::NOMEM, Errno::INTR, Errno::AGAIN, Errno::IO, Errno::INVAL];

const AGAIN: i32 = Errno::AGAIN.raw_os_error();

pub const CONTRACTS: &[Contract] = &[
    ("f1_an_attribute_that_fails_changes_nothing", attribute),
    ("f2_again_says_how_much_of_an_attribute_is_set", again),
    ("f3_a_discard_that_fails_keeps_the_contents", discard),
    ("f4_regions_and_files_that_fail_leave_things_as_they_were", regions),
    ("f5_a_run_that_fails_can_be_made_again", run),
    ("f6_populating_fails_by_type_or_in_part", pre_fault),
    ("f7_an_injection_that_fails_injects_nothing", inject),
];

struct Setting {
    vm: TestVm,
    guest: Box<dyn Guest>,
    memory: TestMemory,
    faults: Faults,
}

/// A guest with memory whose second half is private, each half with its pattern.
fn setting(backend: &Backend) -> anyhow::Result<Setting> {
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let memory = TestMemory::with_both_backings(vm.vm(), 1, GpaRange::new(BASE, 2 * SIZE)?)?;
    memory.host_writes(memory.all(), HOST)?;
    memory.set(memory.part(SIZE, SIZE)?, Private)?;
    guest.writes(memory.part(SIZE, SIZE)?, GUEST)?.done()?;
    Ok(Setting { vm, guest, memory, faults: backend.faults().clone() })
}

impl Setting {
    fn is_as_it_was(&mut self) -> anyhow::Result<()> {
        self.guest.sees(self.memory.part(0, SIZE)?, HOST)?.done()?;
        self.guest.sees(self.memory.part(SIZE, SIZE)?, GUEST)?.done()?;
        self.memory.host_sees(self.memory.all(), HOST)
    }

    /// Orders a failure of the next call, and makes it: it fails so, and nothing is different.
    fn fails<T>(
        &mut self,
        operation: Operation,
        errno: Errno,
        call: impl FnOnce(&mut Self) -> Result<T>,
    ) -> anyhow::Result<()> {
        let (calls, failures) = (self.faults.calls(operation), self.faults.failures(operation));
        self.faults.fail(operation, Failure::new(errno.raw_os_error()));
        let Err(error) = call(self) else { bail!("{operation:?} worked, expected {errno:?}") };
        expect::equal(format!("the error of {operation:?}"), error.errno(), Some(errno.raw_os_error()))?;
        expect::equal("calls", self.faults.calls(operation), calls + 1)?;
        expect::equal("failed calls", self.faults.failures(operation), failures + 1)?;
        self.is_as_it_was()
    }
}

fn attribute(backend: &Backend) -> anyhow::Result<()> {
    let mut setting = setting(backend)?;
    let (first, second) = (setting.memory.part(0, SIZE)?, setting.memory.part(SIZE, SIZE)?);
    for errno in ERRNOS {
        setting.fails(Operation::SetAttribute, errno, |it| it.vm.vm().set_attribute(first, Private))?;
        setting.fails(Operation::SetAttribute, errno, |it| it.vm.vm().set_attribute(second, Shared))?;
    }
    setting.memory.set(setting.memory.all(), Shared)?;
    setting.guest.sees(setting.memory.all(), HOST)?.done()
}

fn again(backend: &Backend) -> anyhow::Result<()> {
    let mut setting = setting(backend)?;
    let range = setting.memory.part(0, SIZE)?;
    let failure = Failure::new(AGAIN).partly(5 * PAGE + 1);
    setting.faults.fail(Operation::SetAttribute, failure.after(1));
    setting.memory.set(range, Shared)?;
    match setting.vm.vm().set_attribute(range, Private) {
        Err(Error::Attribute { source: AttributeError::Again { done }, .. }) => {
            expect::equal("bytes done", done, 5 * PAGE)?;
        }
        other => bail!("{other:?}, expected EAGAIN"),
    }
    setting.guest.sees(setting.memory.part(0, 5 * PAGE)?, Pattern::ZEROS)?.done()?;
    setting.guest.sees(setting.memory.part(5 * PAGE, SIZE - 5 * PAGE)?, HOST)?.done()?;
    setting.memory.set(range, Private)?;
    setting.guest.sees(range, Pattern::ZEROS)?.done()
}

fn discard(backend: &Backend) -> anyhow::Result<()> {
    let mut setting = setting(backend)?;
    let (first, second) = (setting.memory.part(0, SIZE)?, setting.memory.part(SIZE, SIZE)?);
    for errno in ERRNOS {
        for (operation, state) in [(Operation::DiscardShared, Shared), (Operation::DiscardPrivate, Private)] {
            let backing = setting.memory.backing(state)?;
            setting.fails(operation, errno, |it| it.vm.vm().discard(&backing, 0, 2 * SIZE))?;
        }
    }
    setting.memory.discard(first, Shared)?;
    setting.memory.discard(second, Private)?;
    setting.guest.sees(setting.memory.all(), Pattern::ZEROS)?.done()
}

fn regions(backend: &Backend) -> anyhow::Result<()> {
    let mut setting = setting(backend)?;
    for errno in ERRNOS {
        setting.fails(Operation::RemoveRegion, errno, |it| it.vm.vm().remove_region(1))?;
        setting.fails(Operation::CreateGuestMemfd, errno, |it| it.vm.vm().create_guest_memfd(PAGE))?;
        let other = GpaRange::new(2 * BASE, SIZE)?;
        let shared = Some(Slice { backing: Arc::new(SharedMemory::new("kvm-tests", SIZE)?), offset: 0 });
        let region = Region { range: other, shared, private: None };
        setting.fails(Operation::AddRegion, errno, |it| it.vm.vm().add_region(2, &region))?;
        let gpa = other.start();
        expect::equal("a read", setting.guest.sees(other, HOST)?, Outcome::Mmio { gpa, written: None })?;
        setting.vm.vm().add_region(2, &region)?;
        setting.guest.sees(other, Pattern::ZEROS)?.done()?;
        setting.vm.vm().remove_region(2)?;
    }
    setting.vm.vm().remove_region(1)?;
    setting.memory.add_region()?;
    setting.is_as_it_was()
}

fn run(backend: &Backend) -> anyhow::Result<()> {
    let mut setting = setting(backend)?;
    let range = setting.memory.part(0, PAGE)?;
    let order = |setting: &Setting, errno: Errno| {
        setting.faults.fail(Operation::Run, Failure::new(errno.raw_os_error()));
    };
    // A guest that is interrupted goes on by itself.
    for errno in [Errno::INTR, Errno::AGAIN] {
        order(&setting, errno);
        setting.guest.writes(range, GUEST)?.done()?;
        setting.memory.host_sees(range, GUEST)?;
        order(&setting, errno);
        let exit = setting.guest.vcpu().run()?;
        ensure!(matches!(exit, Exit::Interrupted), "{exit:?}, expected an interruption");
    }
    order(&setting, Errno::FAULT);
    expect::equal("what a bare EFAULT is", setting.guest.writes(range, HOST)?, Outcome::NoBacking)?;
    setting.guest.resume()?.done()?;
    setting.memory.host_sees(range, HOST)?;
    for errno in [Errno::NOMEM, Errno::IO, Errno::INVAL] {
        setting.fails(Operation::Run, errno, |it| it.guest.vcpu().run().map(drop))?;
    }
    Ok(())
}

fn pre_fault(backend: &Backend) -> anyhow::Result<()> {
    backend.require(&[Capability::PreFault])?;
    let mut setting = setting(backend)?;
    let range = setting.memory.all();
    setting.memory.discard(range, Shared)?;
    setting.memory.host_writes(setting.memory.part(0, PAGE)?, HOST)?;
    for errno in ERRNOS {
        setting.faults.fail(Operation::PreFault, Failure::new(errno.raw_os_error()));
        let Err(Error::PreFault { source, .. }) = setting.guest.vcpu().pre_fault(range) else {
            bail!("no error, expected {errno:?}");
        };
        let typed = match errno {
            Errno::NOMEM => matches!(source, PreFaultError::NoMemory),
            Errno::INTR => matches!(source, PreFaultError::Interrupted),
            Errno::AGAIN => matches!(source, PreFaultError::Again),
            Errno::IO => matches!(source, PreFaultError::Dead),
            _ => matches!(source, PreFaultError::Invalid),
        };
        ensure!(typed, "{errno:?} is {source:?}");
        expect::equal("shared memory held", setting.memory.held(Shared)?, PAGE)?;
    }
    setting.faults.fail(Operation::PreFault, Failure::new(AGAIN).partly(4 * PAGE));
    expect::equal("bytes done in part", setting.guest.vcpu().pre_fault(range)?, 4 * PAGE)?;
    expect::equal("shared memory held", setting.memory.held(Shared)?, 4 * PAGE)?;
    expect::equal("bytes done", setting.guest.vcpu().pre_fault(setting.memory.part(0, SIZE)?)?, SIZE)?;
    expect::equal("shared memory held", setting.memory.held(Shared)?, SIZE)
}

fn inject(backend: &Backend) -> anyhow::Result<()> {
    let mut setting = setting(backend)?;
    let nowhere = TestMemory::without_guest_memfd(setting.vm.vm(), 2, GpaRange::new(2 * BASE, PAGE)?)?;
    nowhere.set(nowhere.all(), Private)?;
    for errno in ERRNOS {
        setting.guest.writes(nowhere.all(), GUEST)?.private_fault_at(nowhere.all())?;
        setting.fails(Operation::Inject, errno, |it| it.guest.vcpu().inject_general_protection())?;
        setting.guest.writes(nowhere.all(), GUEST)?.private_fault_at(nowhere.all())?;
        setting.guest.resume()?.private_fault_at(nowhere.all())?;
        setting.guest.vcpu().inject_general_protection()?;
        expect::equal("what the guest takes", setting.guest.resume()?, Outcome::GeneralProtection)?;
    }
    Ok(())
}
