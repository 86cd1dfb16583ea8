//! How machines end, and that nothing is left of them.

use anyhow::{Context, bail};
use arch::x86_64::Isolation;
use kvm_tests::expect;
use vmm::Stop;

use crate::Test;
use crate::bed::{Bed, Running, until};

pub const TESTS: &[Test] = &[
    ("a_machine_ends_as_it_is_told_whatever_it_is_at", ends),
    ("a_paused_machine_ends", ends_while_paused),
    ("a_non_maskable_interrupt_reaches_the_guest", nmi),
    ("nothing_is_left_of_a_machine", nothing_is_left),
];

const PROCESSORS: u8 = 2;

fn ends() -> anyhow::Result<()> {
    for isolation in [Isolation::None, Isolation::Software] {
        let bed = Bed::new(isolation, PROCESSORS)?;
        // At once, too: before launch code is through.
        for signs in [0, 1, 2] {
            let works = |machine: &Running<'_>| if signs == 0 { Ok(()) } else { machine.works(PROCESSORS, signs) };
            let stop = bed.run(|machine| works(machine).map(|()| machine.handle.reset()))?;
            expect::equal("the end of a machine that was reset", stop, Stop::Reset)?;
            let stop = bed.run(|machine| works(machine).map(|()| machine.handle.stop()))?;
            expect::equal("the end of a machine that was stopped", stop, Stop::Requested)?;
        }
    }
    Ok(())
}

fn ends_while_paused() -> anyhow::Result<()> {
    let bed = Bed::new(Isolation::Software, PROCESSORS)?;
    let stop = bed.run(|machine| {
        machine.works(PROCESSORS, 1)?;
        machine.pauses()?;
        machine.handle.reset();
        Ok(())
    })?;
    expect::equal("the end", stop, Stop::Reset)?;
    let mut handle = None;
    bed.run(|machine| {
        handle = Some(machine.handle.clone());
        Ok(())
    })?;
    let handle = handle.context("there was a machine")?;
    match (handle.pause(), handle.nmi()) {
        (Err(vmm::Error::Ended), Err(vmm::Error::Ended)) => Ok(()),
        other => bail!("a machine that has ended says {other:?}"),
    }
}

/// The guest has no handler for it, so it can't but crash.
fn nmi() -> anyhow::Result<()> {
    for isolation in [Isolation::None, Isolation::Software] {
        let mut ended = false;
        let stop = Bed::new(isolation, PROCESSORS)?.run(|machine| {
            machine.works(PROCESSORS, 1)?;
            machine.pauses()?;
            machine.handle.nmi()?;
            machine.handle.resume()?;
            until("the guest crashes", || Ok(machine.handle.nmi().is_err()))?;
            ended = true;
            Ok(())
        })?;
        expect::equal("the end", (stop, ended), (Stop::TripleFault, true))?;
    }
    Ok(())
}

fn nothing_is_left() -> anyhow::Result<()> {
    for isolation in [Isolation::None, Isolation::Software] {
        let bed = Bed::new(isolation, PROCESSORS)?;
        let cycle = || bed.run(|machine| machine.works(PROCESSORS, 1));
        // What is made once and kept is made now.
        cycle()?;
        let before = (count("/proc/self/fd")?, count("/proc/self/task")?, count("/proc/self/map_files")?);
        for _ in 0..5 {
            cycle()?;
        }
        let after = (count("/proc/self/fd")?, count("/proc/self/task")?, count("/proc/self/map_files")?);
        expect::equal("descriptors, threads and mapped files", after, before)?;
    }
    Ok(())
}

fn count(folder: &str) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(folder).with_context(|| format!("cannot list {folder}"))?.count())
}
