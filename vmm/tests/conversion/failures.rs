//! Each system call of a conversion fails with each error that it may have, and everything agrees afterwards.

use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{self, Private, Shared};
use hypervisor::faults::{Failure, Operation};
use vmm::memory::ConversionError;
use vmm::memory::conversion::PIECE;

use crate::reference::Reference;
use crate::world::{Kind, World, host, pages};

const BASE: u64 = 1 << 20;
const SIZE: u64 = 4 << 20;
const HARD: [i32; 4] = [libc::ENOMEM, libc::EIO, libc::EINVAL, libc::EPERM];

/// A guest whose pages at `BASE` are in this state, each with a word of its own.
fn guest(kind: Kind, from: PageState) -> (World, Reference) {
    let mut world = World::new(kind, SIZE);
    let mut reference = Reference::new((0..8).map(|page| BASE + page * PAGE_SIZE));
    world.ram.convert(host(pages(BASE, 8), from)).unwrap();
    reference.convert(pages(BASE, 8), from);
    for (gpa, page) in &mut reference.0 {
        page.word = *gpa ^ 0x5eed;
        world.guest_writes(*gpa, from, page.word).unwrap();
    }
    reference.check(&world);
    (world, reference)
}

fn each_guest(test: impl Fn(World, Reference, PageState)) {
    for kind in [Kind::Software, Kind::SwProtected, Kind::SevSnp, Kind::Tdx] {
        for from in [Shared, Private] {
            let (world, reference) = guest(kind, from);
            test(world, reference, from.other());
        }
    }
}

#[test]
fn an_attribute_that_can_not_be_set_leaves_everything_as_it_was() {
    for errno in HARD {
        each_guest(|world, mut reference, to| {
            let failed = world.ram.statistics().conversions_failed;
            world.faults.fail(Operation::SetAttribute, Failure::new(errno));
            let error = world.ram.convert(host(pages(BASE + PAGE_SIZE, 4), to)).unwrap_err();
            assert!(matches!(error, ConversionError::Failed { .. }), "{error:?}");
            reference.check(&world);
            assert_eq!(world.ram.statistics().conversions_failed, failed + 1);
            // Devices are let in again where they were.
            assert_eq!(world.device_reads(BASE + PAGE_SIZE).is_ok(), to == Private);
            // And the next attempt succeeds.
            world.ram.convert(host(pages(BASE + PAGE_SIZE, 4), to)).unwrap();
            reference.convert(pages(BASE + PAGE_SIZE, 4), to);
            reference.check(&world);
        });
    }
}

#[test]
fn pieces_before_the_one_that_fails_stay_converted() {
    each_guest(|world, mut reference, to| {
        // Every other page, so that there are as many pieces.
        let between = pages(BASE + 2 * PAGE_SIZE, 1);
        world.ram.convert(host(between, to)).unwrap();
        reference.convert(between, to);
        world.faults.fail(Operation::SetAttribute, Failure::new(libc::ENOMEM).after(1));
        world.ram.convert(host(pages(BASE, 8), to)).unwrap_err();
        reference.convert(pages(BASE, 2), to);
        reference.check(&world);
    });
}

#[test]
fn a_signal_or_a_page_pinned_for_a_moment_is_no_failure() {
    for failure in [
        Failure::new(libc::EINTR).times(3),
        Failure::new(libc::EAGAIN).times(3),
        Failure::new(libc::EAGAIN).partly(PAGE_SIZE).times(3),
    ] {
        each_guest(|world, mut reference, to| {
            world.faults.fail(Operation::SetAttribute, failure);
            world.ram.convert(host(pages(BASE, 8), to)).unwrap();
            reference.convert(pages(BASE, 8), to);
            reference.check(&world);
        });
    }
}

#[test]
fn a_page_that_stays_pinned_is_a_failure_that_is_undone() {
    for failure in [Failure::new(libc::EINTR), Failure::new(libc::EAGAIN)] {
        each_guest(|world, reference, to| {
            world.faults.fail(Operation::SetAttribute, failure.always());
            world.ram.convert(host(pages(BASE, 8), to)).unwrap_err();
            reference.check(&world);
        });
    }
    // Each of the attempts gets on by a page, and then no more.
    each_guest(|world, reference, to| {
        world.faults.fail(Operation::SetAttribute, Failure::new(libc::EAGAIN).partly(PAGE_SIZE).times(2));
        world.faults.fail(Operation::SetAttribute, Failure::new(libc::ENOMEM));
        world.ram.convert(host(pages(BASE, 8), to)).unwrap_err();
        reference.check(&world);
    });
}

#[test]
fn an_undo_that_fails_stops_the_machine() {
    each_guest(|world, _, to| {
        world.faults.fail(Operation::SetAttribute, Failure::new(libc::EAGAIN).partly(PAGE_SIZE));
        world.faults.fail(Operation::SetAttribute, Failure::new(libc::EIO).always());
        let error = world.ram.convert(host(pages(BASE, 8), to)).unwrap_err();
        assert!(matches!(error, ConversionError::Inconsistent { .. }) && error.is_fatal(), "{error:?}");
        // Nobody knows where these pages are, so nobody gets at them.
        assert!(world.device_reads(BASE).is_err());
        world.faults.clear();
        let error = world.ram.convert(host(pages(BASE, 8), to)).unwrap_err();
        assert!(matches!(error, ConversionError::Stopped), "{error:?}");
    });
}

fn discard_of(side: PageState) -> Operation {
    if side == Shared { Operation::DiscardShared } else { Operation::DiscardPrivate }
}

#[test]
fn memory_that_the_host_does_not_take_back_is_owed_until_it_does() {
    for errno in HARD {
        each_guest(|world, mut reference, to| {
            let range = pages(BASE, 8);
            world.faults.fail(discard_of(to.other()), Failure::new(errno).always());
            world.ram.convert(host(range, to)).unwrap();
            reference.convert(range, to);
            reference.check(&world);
            let statistics = world.ram.statistics();
            assert_eq!(statistics.discard_backlog_bytes, range.len());
            assert!(statistics.discards_failed >= 1);
            assert!(world.events.lock().unwrap()[0].starts_with(&format!("discard {} ", to.other())));

            // The side that was left still holds what it held, so nobody may get at it.
            let error = world.ram.convert(host(range, to.other())).unwrap_err();
            assert!(matches!(error, ConversionError::Owed { .. }) && !error.is_fatal(), "{error:?}");
            reference.check(&world);

            world.faults.clear();
            world.ram.convert(host(range, to.other())).unwrap();
            reference.convert(range, to.other());
            reference.check(&world);
            assert_eq!(world.ram.statistics().discard_backlog_bytes, 0);
        });
    }
}

#[test]
fn a_discard_that_a_signal_interrupts_is_done_again_at_once() {
    each_guest(|world, mut reference, to| {
        world.faults.fail(discard_of(to.other()), Failure::new(libc::EINTR).times(5));
        world.ram.convert(host(pages(BASE, 8), to)).unwrap();
        reference.convert(pages(BASE, 8), to);
        reference.check(&world);
        assert_eq!(world.ram.statistics().discards_failed, 0);
    });
}

#[test]
fn a_failure_in_one_of_several_pieces_of_a_large_range_leaves_all_others_right() {
    let size = 4 * PIECE;
    for failing in 0..4 {
        let world = World::new(Kind::SevSnp, size);
        world.faults.fail(Operation::SetAttribute, Failure::new(libc::ENOMEM).after(failing));
        let all = pages(0, size / PAGE_SIZE);
        world.ram.convert(host(all, Private)).unwrap_err();
        assert_eq!(world.ram.statistics().private_bytes, failing * PIECE);
        assert_eq!(world.vm.private_runs().iter().map(|(start, end)| end - start).sum::<u64>(), failing * PIECE);
    }
}

#[test]
fn no_guest_memory_is_an_error_that_names_what_failed() {
    for operation in [Operation::CreateGuestMemfd, Operation::AddRegion] {
        let hypervisor = hypervisor::model::ModelHypervisor::new();
        hypervisor.faults().fail(operation, Failure::new(libc::ENOMEM));
        let vm = hypervisor.create(hypervisor::VmType::SwProtected).unwrap();
        let layout = arch::x86_64::MemoryLayout::one_alias(SIZE, 46).unwrap();
        let error = vmm::memory::GuestRam::new(vm, layout, vmm::memory::RamOptions::default()).err().unwrap();
        assert!(error.to_string().starts_with("cannot "), "{error}");
    }
}
