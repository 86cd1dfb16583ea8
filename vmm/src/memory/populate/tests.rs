//! What is populated, and what conversions have to do with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::PageState::{Private, Shared};
use hypervisor::model::{ModelHypervisor, allocated};
use hypervisor::{Backing, PAGE_SIZE, Vcpu, Vm, VmType};

use super::*;
use crate::memory::{ConversionError, RamOptions};

const SIZE: u64 = 8 << 20;

/// A guest, all of whose memory is private, and a vCPU of it.
fn guest() -> (Arc<GuestRam>, Box<dyn Vcpu>) {
    let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
    let layout = MemoryLayout::new(Isolation::Software, SIZE, 48).unwrap();
    let ram = GuestRam::new(vm.clone(), layout, RamOptions::default()).unwrap();
    ram.make_all_private().unwrap();
    // What that left goes at leisure, and is counted until then.
    ram.discards.settle_all_in(PageRange::touched(0, SIZE).unwrap(), || false).unwrap();
    (Arc::new(ram), vm.create_vcpu(0).unwrap())
}

fn pages(first: u64, count: u64) -> GpaRange {
    GpaRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

fn convert(ram: &GuestRam, range: GpaRange, to: PageState) -> Result<bool, ConversionError> {
    ram.convert(ConversionRequest { range, to, kind: ConversionKind::Host, origin: Origin::Host })
}

/// Pages that have private memory, as runs.
fn held(ram: &GuestRam) -> Vec<(u64, u64)> {
    let runs = allocated(&Backing::Private(ram.private.clone().unwrap())).unwrap();
    runs.into_iter().map(|run| (run.start / PAGE_SIZE, run.end / PAGE_SIZE)).collect()
}

fn fault_in(vcpu: &dyn Vcpu, range: GpaRange) -> hypervisor::Result<()> {
    assert_eq!(vcpu.pre_fault(range)?, range.len());
    Ok(())
}

#[test]
fn private_pages_are_populated_and_shared_ones_are_not() {
    let (ram, vcpu) = guest();
    convert(&ram, pages(300, 10), Shared).unwrap();
    let mut steps = 0;
    let done = ram.populate(
        pages(290, 300),
        || true,
        |range| {
            steps += 1;
            assert!(range.pages() <= STEP);
            fault_in(&*vcpu, range)
        },
    );
    assert_eq!(done.unwrap(), ControlFlow::Continue(()));
    assert_eq!(held(&ram), [(290, 300), (310, 590)]);
    assert_eq!(steps, 1 + 280_u64.div_ceil(STEP));
    assert_eq!(ram.statistics().discard_backlog_bytes, 0);
    // What is no RAM is left out.
    let beyond = GpaRange::new(SIZE - PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    assert!(ram.populate(beyond, || true, |range| fault_in(&*vcpu, range)).unwrap().is_continue());
    assert_eq!(held(&ram).last(), Some(&(SIZE / PAGE_SIZE - 1, SIZE / PAGE_SIZE)));
}

#[test]
fn what_is_being_populated_is_converted_afterwards_and_then_given_back() {
    let (ram, vcpu) = guest();
    let mut converting = None;
    let done = ram.populate(
        pages(300, 8),
        || true,
        |range| {
            let kept = PageRange::touched(300 * PAGE_SIZE, range.len()).unwrap();
            // It counts as no memory that is owed, but no conversion goes past it.
            assert!(ram.discards.is_owed(kept) && !ram.discards.is_undecided(kept));
            assert_eq!(ram.statistics().discard_backlog_bytes, 0);
            let other = ram.clone();
            converting = Some(std::thread::spawn(move || convert(&other, pages(302, 2), Shared)));
            // Neighbours are nobody's business.
            assert!(convert(&ram, pages(308, 1), Shared).unwrap());
            // What has the state already waits for nothing.
            assert!(!convert(&ram, pages(300, 8), Private).unwrap());
            fault_in(&*vcpu, range)
        },
    );
    assert_eq!(done.unwrap(), ControlFlow::Continue(()));
    assert!(converting.unwrap().join().unwrap().unwrap());
    assert_eq!(held(&ram), [(300, 302), (304, 308)]);
    assert!(!ram.discards.is_owed(PageRange::touched(300 * PAGE_SIZE, 8 * PAGE_SIZE).unwrap()));
}

#[test]
fn it_ends_when_it_is_told_to_and_when_the_machine_pauses_or_ends() {
    let (ram, vcpu) = guest();
    let populate = |go_on: &dyn Fn() -> bool| ram.populate(pages(0, 1000), go_on, |range| fault_in(&*vcpu, range));
    let first = AtomicBool::new(true);
    assert_eq!(populate(&|| first.swap(false, Ordering::Relaxed)).unwrap(), ControlFlow::Break(()));
    assert_eq!(held(&ram), [(0, STEP)]);
    ram.interrupt_conversions();
    assert_eq!(populate(&|| true).unwrap(), ControlFlow::Break(()));
    ram.allow_conversions();
    ram.end_conversions();
    assert_eq!(populate(&|| true).unwrap(), ControlFlow::Break(()));
    assert_eq!(held(&ram), [(0, STEP)]);
}

#[test]
fn an_error_is_told_and_keeps_no_pages() {
    let (ram, _) = guest();
    let failed = |range| Err(hypervisor::Error::PreFault { range, source: hypervisor::PreFaultError::NoBacking });
    assert!(ram.populate(pages(300, 8), || true, failed).is_err());
    assert!(convert(&ram, pages(300, 8), Shared).unwrap());
}
