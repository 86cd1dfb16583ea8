//! Random sequences of conversions and accesses, with failures: a guest that probes pages, a device, and the host's
//! accounting agree with a plain table after each step. `vmm/tests/conversion` does many more of them on the model.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{self, Private, Shared};
use hypervisor::faults::{Failure, Operation};
use kvm_tests::backend::Backend;
use kvm_tests::guest::Guest;
use kvm_tests::pattern::Pattern;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::RamOptions;

use crate::Test;
use crate::bed::{Bed, pages};

pub const TESTS: &[Test] = &[("after_each_step_of_a_random_sequence_everything_agrees", sequences)];

const MIB: u64 = 1 << 20;
const BASE: u64 = 2 * MIB;
const PAGES: u64 = 12;
/// KVM emulated takes milliseconds for a step.
const CASES: u32 = 64;

#[derive(Debug, Clone)]
enum Step {
    Convert { first: u64, count: u64, to: PageState },
    GuestWrite { page: u64, word: u32 },
    DeviceWrite { page: u64, word: u32 },
    Fail { operation: Operation, errno: i32, after: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop::sample::select(vec![Shared, Private]);
    let operations = vec![Operation::SetAttribute, Operation::DiscardShared, Operation::DiscardPrivate];
    let errors = vec![crate::ENOMEM, crate::EIO, crate::EINTR, crate::EAGAIN];
    prop_oneof![
        4 => (0..PAGES, 1..=PAGES, state).prop_map(|(first, count, to)| Step::Convert { first, count, to }),
        3 => (0..PAGES, 1..u32::MAX).prop_map(|(page, word)| Step::GuestWrite { page, word }),
        3 => (0..PAGES, 1..u32::MAX).prop_map(|(page, word)| Step::DeviceWrite { page, word }),
        1 => (prop::sample::select(operations), prop::sample::select(errors), 0..2u64)
            .prop_map(|(operation, errno, after)| Step::Fail { operation, errno, after }),
    ]
}

/// State and word of each page.
type Table = BTreeMap<u64, (PageState, u32)>;

fn sequences(backend: &Backend) -> anyhow::Result<()> {
    backend.create_private_vm()?;
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let steps = prop::collection::vec(step(), 1..16);
    runner
        .run(&steps, |steps| sequence(backend, &steps).map_err(|error| TestCaseError::fail(format!("{error:#}"))))
        .map_err(|error| anyhow::anyhow!("{error}"))
}

fn sequence(backend: &Backend, steps: &[Step]) -> anyhow::Result<()> {
    backend.faults().clear();
    let bed = Bed::one_alias(backend, 4 * MIB, RamOptions::default())?;
    let mut guest = bed.guest(0)?;
    let mut table: Table = (0..PAGES).map(|page| (BASE + page * PAGE_SIZE, (Shared, 0))).collect();
    for step in steps {
        take(backend, &bed, &mut *guest, &mut table, step).with_context(|| format!("{step:?}"))?;
        check(&bed, &mut *guest, &table).with_context(|| format!("after {step:?}"))?;
    }
    backend.faults().clear();
    Ok(())
}

fn take(backend: &Backend, bed: &Bed, guest: &mut dyn Guest, table: &mut Table, step: &Step) -> anyhow::Result<()> {
    match *step {
        Step::Convert { first, count, to } => {
            let range = pages(BASE + first * PAGE_SIZE, count.min(PAGES - first))?;
            let result = bed.convert(range, to);
            ensure!(!result.as_ref().is_err_and(|error| error.is_fatal()), "{result:?}");
            for (gpa, page) in table.range_mut(range.start()..range.end()).filter(|(_, page)| page.0 != to) {
                // What failed may have converted some of them; the check looks at all.
                if result.is_ok() || bed.state(*gpa) == Some(to) {
                    *page = (to, 0);
                }
            }
            if result.is_err() {
                backend.faults().clear();
            }
        }
        Step::GuestWrite { page, word } => {
            let gpa = BASE + page * PAGE_SIZE;
            guest.writes(pages(gpa, 1)?, Pattern::everywhere(word))?.done()?;
            table.entry(gpa).and_modify(|page| page.1 = word);
        }
        Step::DeviceWrite { page, word } => {
            let gpa = BASE + page * PAGE_SIZE;
            let written = bed.ram.devices().view("device").write_slice(&page_of(word), GuestAddress(gpa)).is_ok();
            let page = table.get_mut(&gpa).context("a page of the table")?;
            ensure!(written == (page.0 == Shared), "a device's write to a {} page: {written}", page.0);
            if written {
                page.1 = word;
            }
        }
        Step::Fail { operation, errno, after } => {
            backend.faults().fail(operation, Failure::new(errno).after(after));
        }
    }
    Ok(())
}

/// A page that a guest sees as this word everywhere.
fn page_of(word: u32) -> Vec<u8> {
    let line = [&word.to_le_bytes()[..], &[0; 60]].concat();
    line.repeat(PAGE_SIZE as usize / line.len())
}

fn check(bed: &Bed, guest: &mut dyn Guest, table: &Table) -> anyhow::Result<()> {
    // A side that was left may still be owed, and then only.
    let owed = bed.ram.statistics().discard_backlog_bytes;
    let mut left = 0;
    for (gpa, (state, word)) in table {
        ensure!(bed.state(*gpa) == Some(*state), "the map says {:?} of {gpa:#x}, expected {state}", bed.state(*gpa));
        guest.sees(pages(*gpa, 1)?, Pattern::everywhere(*word))?.done().with_context(|| format!("a {state} page"))?;
        let view = bed.ram.devices().view("device");
        let read = view.read_obj::<u32>(GuestAddress(*gpa)).ok();
        let expected = (*state == Shared).then_some(*word);
        ensure!(read == expected, "a device reads {read:x?} at {gpa:#x}, expected {expected:x?}");
        left += u64::from(*state == Private && bed.has_shared_memory(*gpa)?) * PAGE_SIZE;
    }
    ensure!(left <= owed, "{left:#x} bytes of private pages have shared memory, and {owed:#x} are owed");
    Ok(())
}
