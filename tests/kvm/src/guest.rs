//! A guest of fifty bytes of code that writes, checks or reads memory when it is told to.
//!
//! It runs in 32-bit protected mode with flat segments and no paging: guest virtual and physical addresses are the
//! same, below 4 GiB. Its code lies in a shared page, the number of reads in the next. A command is a set of registers;
//! the guest reports its end by a write to a port:
//!
//! | register | command | at the end |
//! |---|---|---|
//! | EIP | which routine | |
//! | EDI | address of the first word | of the first that is not done |
//! | ECX | number of words | how many are not done |
//! | EAX, EBP | seed and mask of the [`Pattern`] | |
//! | EDX | | the last word read |

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hypervisor::x86_64::{Registers, Segment};
use hypervisor::{Exit, GpaRange, MemoryFault, PAGE_SIZE, Region, SharedMemory, Slice, Vcpu, Vm};
use vm_memory::{Bytes, VolatileMemory};

use crate::pattern::{LINE, Pattern};

/// Where the guest's code lies, and where it counts its reads.
const CODE: u64 = 0x1000;
const COUNTER: u64 = CODE + PAGE_SIZE;
const REPORT: u16 = 1;

const WRITE: &[u8] = &[
    0x89, 0xfb, //       next: mov ebx, edi
    0x21, 0xeb, //             and ebx, ebp
    0x31, 0xc3, //             xor ebx, eax
    0x89, 0x1f, //             mov [edi], ebx
    0x83, 0xc7, 0x40, //       add edi, LINE
    0xe2, 0xf3, //             loop next
    0xe6, 0x01, //             out REPORT, al
];
const CHECK: &[u8] = &[
    0x8b, 0x17, //       next: mov edx, [edi]
    0x89, 0xfb, //             mov ebx, edi
    0x21, 0xeb, //             and ebx, ebp
    0x31, 0xc3, //             xor ebx, eax
    0x39, 0xda, //             cmp edx, ebx
    0x75, 0x05, //             jne done
    0x83, 0xc7, 0x40, //       add edi, LINE
    0xe2, 0xef, //             loop next
    0xe6, 0x01, //       done: out REPORT, al
];
const READ_ON: &[u8] = &[
    0xe6, 0x01, //                               out REPORT, al
    0x8b, 0x17, //                         next: mov edx, [edi]
    0xff, 0x05, 0x00, 0x20, 0x00, 0x00, //       inc dword ptr [COUNTER]
    0xeb, 0xf6, //                               jmp next
];

const WRITE_AT: u64 = CODE;
const CHECK_AT: u64 = WRITE_AT + WRITE.len() as u64;
const READ_ON_AT: u64 = CHECK_AT + CHECK.len() as u64;

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
}

impl Outcome {
    /// The command must be done.
    pub fn done(self) -> anyhow::Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Differs { gpa, found } => bail!("the guest reads {found:#x} at {gpa:#x}, which is something else"),
            Self::Fault(fault) => bail!("the guest is stopped by {fault:x?}"),
        }
    }

    /// The command must have been stopped by a private access to this page.
    pub fn private_fault_at(self, page: GpaRange) -> anyhow::Result<()> {
        let expected = MemoryFault { gpa: page.start(), size: page.len(), private: true };
        ensure!(self == Self::Fault(expected), "{self:x?}, expected {expected:x?}");
        Ok(())
    }
}

/// A vCPU with that code.
pub struct Guest {
    vcpu: Box<dyn Vcpu>,
    low: Arc<SharedMemory>,
}

impl Guest {
    /// Adds its two pages in slot `slot` of a VM, and vCPU 0.
    pub fn new(vm: &dyn Vm, slot: u32) -> anyhow::Result<Self> {
        let low = Arc::new(SharedMemory::new("kvm-tests-code", 2 * PAGE_SIZE)?);
        low.mapping().as_volatile_slice().write_slice(&[WRITE, CHECK, READ_ON].concat(), 0)?;
        let shared = Some(Slice { backing: low.clone(), offset: 0 });
        vm.add_region(slot, &Region { range: GpaRange::new(CODE, low.size())?, shared, private: None })?;
        let vcpu = vm.create_vcpu(0)?;
        enter_flat_protected_mode(&*vcpu)?;
        Ok(Self { vcpu, low })
    }

    /// The guest writes a range.
    pub fn writes(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome> {
        self.command(WRITE_AT, range, pattern)?;
        self.resume()
    }

    /// The guest sees this in a range.
    pub fn sees(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome> {
        self.command(CHECK_AT, range, pattern)?;
        self.resume()
    }

    /// Goes on with a command that faulted.
    pub fn resume(&mut self) -> anyhow::Result<Outcome> {
        if let Some(fault) = self.run()? {
            return Ok(Outcome::Fault(fault));
        }
        let registers = self.vcpu.registers()?;
        if registers.rcx == 0 {
            return Ok(Outcome::Done);
        }
        Ok(Outcome::Differs { gpa: registers.rdi, found: registers.rdx as u32 })
    }

    /// The guest reads the first word of a range in a thread of its own until a fault stops it.
    pub fn reads_on(mut self, range: GpaRange) -> anyhow::Result<Reader> {
        self.command(READ_ON_AT, range, Pattern::ZEROS)?;
        ensure!(self.run()?.is_none(), "the guest faults before its first read");
        let (sender, stopped) = channel();
        let low = self.low.clone();
        thread::spawn(move || {
            // Nobody listens any more when the test has already failed.
            let _ = sender.send(self.run_until_fault());
        });
        Ok(Reader { low, stopped })
    }

    fn run_until_fault(mut self) -> anyhow::Result<Stopped> {
        let fault = self.run()?.context("the guest reported, and did not fault")?;
        let last = self.vcpu.registers()?.rdx as u32;
        Ok(Stopped { guest: self, outcome: Outcome::Fault(fault), last })
    }

    fn command(&mut self, routine: u64, range: GpaRange, pattern: Pattern) -> anyhow::Result<()> {
        ensure!(range.end() <= 1 << 32, "{range} is not below 4 GiB");
        let mut registers = Registers { rip: routine, rflags: 2, ..Default::default() };
        registers.rdi = range.start();
        registers.rcx = range.len() / LINE;
        registers.rax = pattern.seed.into();
        registers.rbp = pattern.mask.into();
        Ok(self.vcpu.set_registers(&registers)?)
    }

    /// Runs until the guest reports (nothing) or faults.
    fn run(&mut self) -> anyhow::Result<Option<MemoryFault>> {
        loop {
            match self.vcpu.run()? {
                Exit::IoOut { port: REPORT, .. } => return Ok(None),
                Exit::MemoryFault(fault) => return Ok(Some(fault)),
                Exit::Interrupted => {}
                other => bail!("the guest stops with an exit that nothing here causes: {other:x?}"),
            }
        }
    }
}

/// A guest that reads on.
pub struct Reader {
    low: Arc<SharedMemory>,
    stopped: Receiver<anyhow::Result<Stopped>>,
}

/// A guest that read on until it was stopped.
pub struct Stopped {
    /// The guest, which takes commands again.
    pub guest: Guest,
    /// By what.
    pub outcome: Outcome,
    /// What it read last.
    pub last: u32,
}

impl Reader {
    /// Waits until it has read a thousand times more.
    pub fn reads_a_thousand_times(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let enough = self.reads()?.wrapping_add(1000);
        // The counter wraps, so the sign of the difference tells which is ahead.
        while (self.reads()?.wrapping_sub(enough) as i32) < 0 {
            ensure!(Instant::now() < deadline, "the guest does not read on");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// It stops within that time.
    pub fn stops_within(self, limit: Duration) -> anyhow::Result<Stopped> {
        self.stopped.recv_timeout(limit).context("the guest reads on")?
    }

    fn reads(&self) -> anyhow::Result<u32> {
        Ok(self.low.mapping().as_volatile_slice().read_obj((COUNTER - CODE) as usize)?)
    }
}

fn enter_flat_protected_mode(vcpu: &dyn Vcpu) -> anyhow::Result<()> {
    const PROTECTED: u64 = 1;
    const NUMERIC_ERRORS_AND_387: u64 = 1 << 5 | 1 << 4;
    let code = Segment {
        limit: u32::MAX,
        selector: 8,
        type_: 0xb, // execute, read, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = Segment { selector: 16, type_: 3, ..code };
    let mut special = vcpu.special_registers()?;
    special.cs = code;
    (special.ds, special.es, special.ss) = (data, data, data);
    (special.fs, special.gs) = (data, data);
    special.cr0 = PROTECTED | NUMERIC_ERRORS_AND_387;
    Ok(vcpu.set_special_registers(&special)?)
}
