//! Pausing and resuming machines whose processors all work.

use std::time::Duration;

use anyhow::ensure;
use arch::x86_64::Isolation;
use kvm_tests::expect;
use kvm_tests::swarm;
use vm_memory::GuestAddress;
use vmm::Stop;

use crate::Test;
use crate::bed::{Bed, Running, until};

pub const TESTS: &[Test] = &[
    ("a_paused_machine_stands_still_and_goes_on", stands_still),
    ("a_pause_waits_for_no_device", waits_for_no_device),
    ("a_machine_that_waits_for_a_device_ends", ends_while_it_waits),
];

const PROCESSORS: u8 = 2;

fn stands_still() -> anyhow::Result<()> {
    for isolation in [Isolation::None, Isolation::Software] {
        Bed::new(isolation, PROCESSORS)?.run(|machine| {
            machine.works(PROCESSORS, 1)?;
            for _ in 0..5 {
                machine.pauses()?;
                machine.pauses()?;
                ensure!(machine.handle.is_paused(), "it is not paused");
                let before = progress(machine)?;
                std::thread::sleep(Duration::from_millis(50));
                expect::equal("what was done in a paused machine", progress(machine)?, before)?;
                machine.handle.resume()?;
                machine.handle.resume()?;
                ensure!(!machine.handle.is_paused(), "it is paused still");
                machine.works(PROCESSORS, 1)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What only vCPUs change.
fn progress(machine: &Running<'_>) -> anyhow::Result<(Vec<usize>, [u64; 3])> {
    let signs = (0..PROCESSORS).map(|id| machine.signs_of(id)).collect::<anyhow::Result<_>>()?;
    let statistics = machine.handle.memory_statistics();
    Ok((signs, [statistics.conversions_explicit, statistics.conversions_implicit, statistics.private_bytes]))
}

/// Runs `test` while a device holds on to a page that processor 0 wants to make private, and waits for in vain.
fn with_a_page_held(machine: &Running<'_>, test: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    machine.works(PROCESSORS, 1)?;
    let view = machine.handle.memory().devices().view("a device that takes its time");
    let page = GuestAddress(swarm::pages_of(0)?.start());
    let mut window = None;
    until("the page is shared", || {
        window = view.window(page, 8).ok();
        Ok(window.is_some())
    })?;
    until("a conversion waits", || Ok(machine.handle.memory_statistics().conversion_waits > 0))?;
    test()?;
    drop(window);
    Ok(())
}

fn waits_for_no_device() -> anyhow::Result<()> {
    Bed::new(Isolation::Software, PROCESSORS)?.run(|machine| {
        with_a_page_held(machine, || {
            ensure!(machine.handle.memory_statistics().converting_bytes > 0, "no conversion waits");
            // Again and again: a conversion that was undone begins anew, and waits anew.
            for _ in 0..5 {
                machine.pauses()?;
                let statistics = machine.handle.memory_statistics();
                expect::equal("what is being converted in a paused machine", statistics.converting_bytes, 0)?;
                machine.handle.resume()?;
                let waits = || Ok(machine.handle.memory_statistics().converting_bytes > 0);
                until("the conversion waits again", waits)?;
            }
            Ok(())
        })?;
        machine.works(PROCESSORS, 2)?;
        expect::equal("failed conversions", machine.handle.memory_statistics().conversions_failed, 0)
    })?;
    Ok(())
}

fn ends_while_it_waits() -> anyhow::Result<()> {
    let bed = Bed::new(Isolation::Software, PROCESSORS)?;
    // Held beyond the machine's end.
    let mut held = None;
    let stop = bed.run(|machine| {
        machine.works(PROCESSORS, 1)?;
        let view = machine.handle.memory().devices().view("a device that hangs");
        let page = GuestAddress(swarm::pages_of(0)?.start());
        until("the page is shared", || {
            held = view.pin(&[(page, 8)]).ok();
            Ok(held.is_some())
        })?;
        until("a conversion waits", || Ok(machine.handle.memory_statistics().conversion_waits > 0))?;
        machine.handle.reset();
        Ok(())
    })?;
    ensure!(held.is_some(), "nobody held the page");
    expect::equal("the end", stop, Stop::Reset)
}
