//! Several processors: all of them start, and all of them convert.

use anyhow::ensure;
use arch::x86_64::Isolation;
use hypervisor::GpaRange;
use kvm_tests::expect;
use kvm_tests::umbra::shared_memory::SharedMemoryFile;
use vmm::Stop;

use crate::Test;
use crate::bed::{Bed, until};

pub const TESTS: &[Test] = &[
    ("processors_start_by_init_and_sipi", || start(Isolation::None)),
    ("processors_start_through_the_mailbox", || start(Isolation::Software)),
    ("a_kernel_that_knows_no_mailbox_runs_on_one_processor", no_mailbox),
    ("what_processors_need_to_start_is_not_left_in_shared_memory", low_memory),
    ("n7_every_processor_converts_as_fast_as_it_can", n7),
];

fn start(isolation: Isolation) -> anyhow::Result<()> {
    for processors in [1, 2, 4] {
        let stop = Bed::new(isolation, processors)?.run(|machine| machine.works(processors, 1))?;
        expect::equal("the end", stop, Stop::Requested)?;
    }
    Ok(())
}

/// Its other processors run on in real mode, through shared low memory that holds nothing, until they are found out.
fn no_mailbox() -> anyhow::Result<()> {
    let bed = Bed::new(Isolation::Software, 3)?.knowing_no_mailbox();
    let stop = bed.run(|machine| {
        until("the other processors are taken out", || Ok(vcpu_threads()? == 1))?;
        machine.works(1, 2)?;
        expect::equal("signs of the other processors", (machine.signs_of(1)?, machine.signs_of(2)?), (0, 0))
    })?;
    expect::equal("the end", stop, Stop::Requested)
}

/// How many vCPUs this process runs.
fn vcpu_threads() -> anyhow::Result<usize> {
    let mut found = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // Threads may end meanwhile.
        let name = std::fs::read_to_string(task?.path().join("comm"));
        found += usize::from(name.is_ok_and(|name| name.starts_with("vcpu")));
    }
    Ok(found)
}

fn low_memory() -> anyhow::Result<()> {
    let processors = 3;
    Bed::new(Isolation::Software, processors)?.run(|machine| {
        machine.works(processors, 1)?;
        let shared = SharedMemoryFile::of(rustix::process::getpid())?;
        // The kernel's first page tables are there, privately: not all of it is zero.
        let low = GpaRange::new(0, 0xa_0000)?;
        until("low memory's shared copy is gone", || Ok(shared.holds_low(low, 0).is_ok()))
    })?;
    Ok(())
}

fn n7() -> anyhow::Result<()> {
    let processors = 4;
    let stop = Bed::new(Isolation::Software, processors)?.run(|machine| {
        machine.works(processors, 4)?;
        machine.pauses()?;
        let statistics = machine.handle.memory_statistics();
        expect::equal(
            "private and shared memory",
            statistics.private_bytes + statistics.shared_bytes,
            statistics.ram_bytes,
        )?;
        expect::equal("conversions that failed", statistics.conversions_failed, 0)?;
        expect::equal("conversions under way in a paused machine", statistics.converting_bytes, 0)?;
        ensure!(statistics.conversions_explicit > 100, "{statistics:?}");
        machine.handle.resume()?;
        machine.works(processors, 1)
    })?;
    expect::equal("the end", stop, Stop::Requested)
}
