//! A guest that writes, checks or reads memory when it is told to, and asks for conversions.
//!
//! [`X86Guest`] is a hundred bytes of code on a real processor, [`ScriptedGuest`] a script on the model. Both touch memory
//! alike: one word of 4 bytes in each cache line, in the order of addresses, and nothing besides. A contract can't tell
//! them apart.

mod scripted;
mod x86;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hypervisor::{GpaRange, MapGpaRangeReply, MemoryFault, Vcpu};

use crate::pattern::Pattern;

pub use scripted::ScriptedGuest;
pub use x86::{REPORT_DOUBLE_FAULT, X86Guest};

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is done, and every word that was checked is as expected.
    Done,
    /// This word is not as expected.
    Differs {
        /// Its address.
        gpa: u64,
        /// What the guest read there.
        found: u32,
    },
    /// The guest stands before an access that faulted.
    Fault(MemoryFault),
    /// The guest stands before an access that nothing is behind.
    NoBacking,
    /// The guest reads or writes where no memory is. It goes on with all ones, or as if it had written.
    Mmio {
        /// Where.
        gpa: u64,
        /// The word that it writes.
        written: Option<u32>,
    },
    /// A general protection fault with error code 0 came before the access at which the guest stood. It forgot the
    /// command.
    GeneralProtection,
}

impl Outcome {
    /// The command must be done.
    pub fn done(self) -> anyhow::Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Differs { gpa, found } => bail!("the guest reads {found:#x} at {gpa:#x}, which is something else"),
            other => bail!("the guest is stopped by {other:x?}"),
        }
    }

    /// The command must have been stopped by a private access to this page.
    pub fn private_fault_at(self, page: GpaRange) -> anyhow::Result<()> {
        let expected = MemoryFault { gpa: page.start(), size: page.len(), private: true };
        ensure!(self == Self::Fault(expected), "{self:x?}, expected {expected:x?}");
        Ok(())
    }
}

/// What a guest was answered when it asked for a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Address, pages and attributes that the VMM saw, if it saw any.
    pub seen: Option<[u64; 3]>,
    /// What the guest found in EAX.
    pub eax: i32,
}

/// A guest.
pub trait Guest: Send {
    /// The guest writes a range.
    fn writes(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome>;

    /// The guest sees this in a range.
    fn sees(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome>;

    /// Goes on with a command that stopped.
    fn resume(&mut self) -> anyhow::Result<Outcome>;

    /// The guest issues KVM_HC_MAP_GPA_RANGE with 32-bit arguments, and the VMM replies so, or forgets to.
    fn asks(&mut self, arguments: [u32; 3], reply: Option<MapGpaRangeReply>) -> anyhow::Result<Answered>;

    /// Its vCPU.
    fn vcpu(&mut self) -> &mut dyn Vcpu;

    /// The guest reads the first word of a range in a thread of its own until a fault stops it.
    fn reads_on(self: Box<Self>, range: GpaRange) -> anyhow::Result<Reader>;
}

/// A guest that reads on.
pub struct Reader {
    reads: Box<dyn Fn() -> anyhow::Result<u32>>,
    stopped: Receiver<anyhow::Result<Stopped>>,
}

/// A guest that read on until it was stopped.
pub struct Stopped {
    /// The guest, which takes commands again.
    pub guest: Box<dyn Guest>,
    /// By what.
    pub outcome: Outcome,
    /// What it read last.
    pub last: u32,
}

impl Reader {
    /// Starts `read` in a thread; `reads` tells how often it has read.
    fn start(
        reads: impl Fn() -> anyhow::Result<u32> + 'static,
        read: impl FnOnce() -> anyhow::Result<Stopped> + Send + 'static,
    ) -> Self {
        let (sender, stopped): (Sender<_>, _) = channel();
        thread::spawn(move || {
            // Nobody listens any more when the test has already failed.
            let _ = sender.send(read());
        });
        Self { reads: Box::new(reads), stopped }
    }

    /// Waits until it has read a thousand times more.
    pub fn reads_a_thousand_times(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let enough = (self.reads)()?.wrapping_add(1000);
        // The counter wraps, so the sign of the difference tells which is ahead.
        while ((self.reads)()?.wrapping_sub(enough) as i32) < 0 {
            ensure!(Instant::now() < deadline, "the guest does not read on");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// It stops within that time.
    pub fn stops_within(self, limit: Duration) -> anyhow::Result<Stopped> {
        self.stopped.recv_timeout(limit).context("the guest reads on")?
    }
}
