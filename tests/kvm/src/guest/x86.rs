//! The guest on KVM: a hundred bytes of code.
//!
//! It runs in 32-bit protected mode with flat segments and no paging: guest virtual and physical addresses are the
//! same, below 4 GiB. Each guest has two shared pages of its own: one with code, tables and a stack, one in which it
//! counts its reads. A command is a set of registers; the guest reports its end by a write to a port:
//!
//! | register | command | at the end |
//! |---|---|---|
//! | EIP | which routine | |
//! | EDI | address of the first word | of the first that is not done |
//! | ECX | number of words | how many are not done |
//! | EAX, EBP | seed and mask of the [`Pattern`] | |
//! | EDX | | the last word read |
//!
//! A hypercall takes EAX, EBX, ECX and EDX instead. General protection faults and double faults are reported through ports
//! of their own.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use hypervisor::x86_64::{Registers, Segment};
use hypervisor::{Exit, GpaRange, MapGpaRangeReply, PAGE_SIZE, Region, SharedMemory, Slice, Vcpu, Vm};
use vm_memory::{Bytes, VolatileMemory};

use super::{Answered, Guest, Outcome, Reader, Stopped};
use crate::pattern::{LINE, Pattern};

/// Where the first guest's pages lie; those of the others follow. Above all RAM that lies below 4 GiB.
const FIRST: u64 = 0xd000_0000;
/// What lies in a guest's pages, from their start.
const DESCRIPTORS: u64 = 0x800;
const INTERRUPTS: u64 = 0x900;
const STACK: u64 = 0xff0;
const COUNTER: u64 = PAGE_SIZE;
const PAGES: u64 = 2;

const REPORT: u16 = 1;
const REPORT_GENERAL_PROTECTION: u16 = 2;
/// The port through which a double fault is reported.
pub const REPORT_DOUBLE_FAULT: u16 = 3;
const DOUBLE_FAULT: usize = 8;
const GENERAL_PROTECTION: usize = 13;
const MAP_GPA_RANGE: u64 = 12;

/// Selectors of the two segments.
const CODE: u16 = 8;
const DATA: u16 = 16;

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
    0xe6, 0x01, //             out REPORT, al
    0x8b, 0x17, //       next: mov edx, [edi]
    0xff, 0x06, //             inc dword ptr [esi]
    0xeb, 0xfa, //             jmp next
];
const HYPERCALL_INTEL: &[u8] = &[
    0x0f, 0x01, 0xc1, //       vmcall
    0xe6, 0x01, //             out REPORT, al
];
const HYPERCALL_AMD: &[u8] = &[
    0x0f, 0x01, 0xd9, //       vmmcall
    0xe6, 0x01, //             out REPORT, al
];
const GENERAL_PROTECTION_HANDLER: &[u8] = &[
    0xe6, 0x02, //             out REPORT_GENERAL_PROTECTION, al
    0xf4, //                   hlt
];
const DOUBLE_FAULT_HANDLER: &[u8] = &[
    0xe6, 0x03, //             out REPORT_DOUBLE_FAULT, al
    0xf4, //                   hlt
];

const WRITE_AT: u64 = 0;
const CHECK_AT: u64 = WRITE_AT + WRITE.len() as u64;
const READ_ON_AT: u64 = CHECK_AT + CHECK.len() as u64;
const HYPERCALL_AT: u64 = READ_ON_AT + READ_ON.len() as u64;
const HANDLERS_AT: u64 = HYPERCALL_AT + HYPERCALL_AMD.len() as u64;
const HANDLERS: [(usize, u64); 2] =
    [(GENERAL_PROTECTION, HANDLERS_AT), (DOUBLE_FAULT, HANDLERS_AT + GENERAL_PROTECTION_HANDLER.len() as u64)];

/// A vCPU with that code.
pub struct X86Guest {
    vcpu: Box<dyn Vcpu>,
    low: Arc<SharedMemory>,
    base: u64,
}

impl X86Guest {
    /// Adds its two pages in slot `slot` of a VM, and vCPU `id`.
    pub fn new(vm: &dyn Vm, slot: u32, id: u8, amd: bool) -> anyhow::Result<Self> {
        let base = FIRST + u64::from(id) * PAGES * PAGE_SIZE;
        let low = Arc::new(SharedMemory::new("kvm-tests-code", PAGES * PAGE_SIZE)?);
        let memory = low.mapping().as_volatile_slice();
        let hypercall = if amd { HYPERCALL_AMD } else { HYPERCALL_INTEL };
        let handlers = [GENERAL_PROTECTION_HANDLER, DOUBLE_FAULT_HANDLER].concat();
        memory.write_slice(&[WRITE, CHECK, READ_ON, hypercall, &handlers].concat(), 0)?;
        for (number, descriptor) in [0, FLAT_CODE, FLAT_DATA].into_iter().enumerate() {
            memory.write_obj(descriptor, DESCRIPTORS as usize + 8 * number)?;
        }
        for (vector, handler) in HANDLERS {
            memory.write_obj(interrupt_gate(base + handler), INTERRUPTS as usize + 8 * vector)?;
        }
        let shared = Some(Slice { backing: low.clone(), offset: 0 });
        vm.add_region(slot, &Region { range: GpaRange::new(base, low.size())?, shared, private: None })?;
        let vcpu = vm.create_vcpu(id)?;
        enter_flat_protected_mode(&*vcpu, base)?;
        Ok(Self { vcpu, low, base })
    }

    fn run_until_fault(mut self) -> anyhow::Result<Stopped> {
        let outcome = self.run(None)?.stop.context("the guest reported, and did not fault")?;
        let last = self.vcpu.registers()?.rdx as u32;
        Ok(Stopped { guest: Box::new(self), outcome, last })
    }

    fn command(&mut self, routine: u64, range: GpaRange, pattern: Pattern) -> anyhow::Result<()> {
        ensure!(range.end() <= 1 << 32, "{range} is not below 4 GiB");
        self.set_registers(Registers {
            rip: self.base + routine,
            rdi: range.start(),
            rcx: range.len() / LINE,
            rax: pattern.seed.into(),
            rbp: pattern.mask.into(),
            ..Default::default()
        })
    }

    fn set_registers(&mut self, registers: Registers) -> anyhow::Result<()> {
        let (rsp, rsi) = (self.base + STACK, self.base + COUNTER);
        Ok(self.vcpu.set_registers(&Registers { rflags: 2, rsp, rsi, ..registers })?)
    }

    /// Runs until the guest reports or something stops it. Conversion requests get this reply, or none.
    fn run(&mut self, reply: Option<MapGpaRangeReply>) -> anyhow::Result<Run> {
        let mut asked = None;
        let stop = loop {
            break match self.vcpu.run()? {
                Exit::IoOut { port: REPORT, .. } => None,
                Exit::IoOut { port: REPORT_GENERAL_PROTECTION, .. } => {
                    self.check_general_protection()?;
                    Some(Outcome::GeneralProtection)
                }
                Exit::MemoryFault(fault) => Some(Outcome::Fault(fault)),
                Exit::NoBacking => Some(Outcome::NoBacking),
                Exit::MmioRead { gpa, .. } => Some(Outcome::Mmio { gpa, written: None }),
                Exit::MmioWrite { gpa, data } => {
                    let word = u32::from_le_bytes(data.try_into().context("not a word")?);
                    Some(Outcome::Mmio { gpa, written: Some(word) })
                }
                Exit::MapGpaRange(request) => {
                    asked = Some([request.gpa, request.pages, request.attributes]);
                    if let Some(reply) = reply {
                        request.reply(reply);
                    }
                    continue;
                }
                Exit::Interrupted => continue,
                Exit::Shutdown => bail!("the guest's processor shut down (a triple fault)"),
                other => bail!("the guest stops with an exit that nothing here causes: {other:x?}"),
            };
        };
        Ok(Run { stop, asked })
    }

    /// The frame on the stack: error code 0, and the address of an instruction of a routine.
    fn check_general_protection(&self) -> anyhow::Result<()> {
        let frame = usize::try_from(self.vcpu.registers()?.rsp - self.base)?;
        let memory = self.low.mapping().as_volatile_slice();
        let (code, eip): (u32, u32) = (memory.read_obj(frame)?, memory.read_obj(frame + 4)?);
        ensure!(code == 0, "the general protection fault has error code {code:#x}");
        // The instruction that accesses memory, in `WRITE` or in `CHECK`.
        let accesses = [WRITE_AT + 6, CHECK_AT].map(|offset| self.base + offset);
        ensure!(
            accesses.contains(&eip.into()),
            "the general protection fault came at {eip:#x}, not one of {accesses:x?}"
        );
        Ok(())
    }
}

/// How a run ended: `stop` is `None` if the guest reported.
struct Run {
    stop: Option<Outcome>,
    asked: Option<[u64; 3]>,
}

impl Guest for X86Guest {
    fn writes(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome> {
        self.command(WRITE_AT, range, pattern)?;
        self.resume()
    }

    fn sees(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome> {
        self.command(CHECK_AT, range, pattern)?;
        self.resume()
    }

    fn resume(&mut self) -> anyhow::Result<Outcome> {
        if let Some(stop) = self.run(None)?.stop {
            return Ok(stop);
        }
        let registers = self.vcpu.registers()?;
        if registers.rcx == 0 {
            return Ok(Outcome::Done);
        }
        Ok(Outcome::Differs { gpa: registers.rdi, found: registers.rdx as u32 })
    }

    fn asks(&mut self, arguments: [u32; 3], reply: Option<MapGpaRangeReply>) -> anyhow::Result<Answered> {
        let [rbx, rcx, rdx] = arguments.map(u64::from);
        let rip = self.base + HYPERCALL_AT;
        self.set_registers(Registers { rip, rax: MAP_GPA_RANGE, rbx, rcx, rdx, ..Default::default() })?;
        let run = self.run(reply)?;
        ensure!(run.stop.is_none(), "the guest is stopped by {:x?}", run.stop);
        Ok(Answered { seen: run.asked, eax: self.vcpu.registers()?.rax as i32 })
    }

    fn vcpu(&mut self) -> &mut dyn Vcpu {
        &mut *self.vcpu
    }

    fn reads_on(mut self: Box<Self>, range: GpaRange) -> anyhow::Result<Reader> {
        self.command(READ_ON_AT, range, Pattern::ZEROS)?;
        ensure!(self.run(None)?.stop.is_none(), "the guest is stopped before its first read");
        let low = self.low.clone();
        let reads = move || Ok(low.mapping().as_volatile_slice().read_obj(COUNTER as usize)?);
        Ok(Reader::start(reads, move || self.run_until_fault()))
    }
}

/// Descriptors of flat 32-bit segments.
const FLAT_CODE: u64 = 0x00cf_9b00_0000_ffff;
const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;

/// A 32-bit interrupt gate for the kernel.
fn interrupt_gate(handler: u64) -> u64 {
    const PRESENT_32_BIT_INTERRUPT: u64 = 0x8e00 << 32;
    (handler & 0xffff) | u64::from(CODE) << 16 | PRESENT_32_BIT_INTERRUPT | (handler & 0xffff_0000) << 32
}

fn enter_flat_protected_mode(vcpu: &dyn Vcpu, base: u64) -> anyhow::Result<()> {
    const PROTECTED: u64 = 1;
    const NUMERIC_ERRORS_AND_387: u64 = 1 << 5 | 1 << 4;
    let code = Segment {
        limit: u32::MAX,
        selector: CODE,
        type_: 0xb, // execute, read, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = Segment { selector: DATA, type_: 3, ..code };
    let mut special = vcpu.special_registers()?;
    special.cs = code;
    (special.ds, special.es, special.ss) = (data, data, data);
    (special.fs, special.gs) = (data, data);
    (special.gdt.base, special.gdt.limit) = (base + DESCRIPTORS, 3 * 8 - 1);
    (special.idt.base, special.idt.limit) = (base + INTERRUPTS, (GENERAL_PROTECTION as u16 + 1) * 8 - 1);
    special.cr0 = PROTECTED | NUMERIC_ERRORS_AND_387;
    Ok(vcpu.set_special_registers(&special)?)
}
