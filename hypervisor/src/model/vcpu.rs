//! A vCPU of the model's: works through its script, and leaves where KVM would.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::access::{Current, Left, Stop};
use super::hypercall::{self, Next};
use super::script::{Action, Outcome, Script};
use super::vm::{Machine, failed};
use crate::faults::Operation;
use crate::x86_64::{CpuidEntry, Registers, SpecialRegisters};
use crate::{Error, Exit, GpaRange, Interrupter, MapGpaRange, MsrRead, PAGE_SIZE, PreFaultError, Result, Vcpu};

/// `KVM_INTERNAL_ERROR_EMULATION`: what becomes of a fetch from where no memory is.
const EMULATION: u32 = 1;

#[derive(Debug)]
pub(super) struct ModelVcpu {
    id: u8,
    machine: Arc<Machine>,
    script: Script,
    current: Option<Current>,
    /// The guest takes one before it does anything else.
    general_protection: bool,
    // What exits lend to the VMM.
    data: Vec<u8>,
    value: u64,
    msr_error: u8,
    kept: RefCell<Kept>,
    interrupt: Arc<Interrupt>,
}

/// Whether runs come back at once.
#[derive(Debug, Default)]
struct Interrupt(AtomicBool);

impl Interrupter for Interrupt {
    fn set(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }
}

/// What is written and read, and has no effect.
#[derive(Debug, Default)]
struct Kept {
    msrs: HashMap<u32, u64>,
    registers: Registers,
    special_registers: SpecialRegisters,
}

impl ModelVcpu {
    pub(super) fn new(id: u8, machine: Arc<Machine>, script: Script) -> Self {
        Self {
            id,
            machine,
            script,
            current: None,
            general_protection: false,
            data: Vec::new(),
            value: 0,
            msr_error: 0,
            kept: RefCell::default(),
            interrupt: Arc::default(),
        }
    }

    /// Works until something is for the VMM.
    fn work(&mut self) -> Result<Stop> {
        let cleared = self.script.cleared();
        self.current.take_if(|current| current.cleared != cleared);
        loop {
            let next = || self.script.next().map(Current::new);
            let Some(mut current) = self.current.take().or_else(next) else { return Ok(Stop::Halt) };
            let step = match current.left.take() {
                Some(left) => self.take_back(&mut current, left)?,
                None => None,
            };
            let step = match step {
                Some(step) => step,
                None if mem::take(&mut self.general_protection) => Ok(Outcome::GeneralProtection),
                None => self.step(&mut current),
            };
            match step {
                Ok(outcome) => self.script.record(outcome),
                Err(stop) => {
                    self.current = Some(current);
                    return Ok(stop);
                }
            }
        }
    }

    /// Takes what the VMM was left to do for the action in progress. `None` if there is more to do.
    fn take_back(&mut self, current: &mut Current, left: Left) -> Result<Option<std::result::Result<Outcome, Stop>>> {
        let accepted = |outcome| Ok(if self.msr_error == 0 { outcome } else { Outcome::GeneralProtection });
        Ok(match left {
            Left::Mmio => {
                current.take_back_mmio(&self.data);
                None
            }
            Left::Port => Some(Ok(Outcome::PortWritten)),
            Left::MsrRead => Some(accepted(Outcome::MsrRead(self.value))),
            Left::MsrWrite => Some(accepted(Outcome::MsrWritten)),
            Left::MapGpaRange(request) => match request.go_on(self.machine.rule, self.value) {
                Some(next) => Some(announce(current, next)),
                None => return Err(failed("run", format!("vCPU {}", self.id))(libc::EINVAL)),
            },
        })
    }

    /// Does as much of an action as can be done without the VMM.
    fn step(&mut self, current: &mut Current) -> std::result::Result<Outcome, Stop> {
        match current.action {
            Action::Read { at, len } => current.access(&self.machine, at, len, &mut self.data),
            Action::Write { at, ref data } => {
                let size = data.len();
                current.access(&self.machine, at, size, &mut self.data)
            }
            Action::Execute { at } => current.access(&self.machine, at, 1, &mut self.data),
            Action::MapGpaRange { gpa, pages, attributes } => {
                let enabled = self.machine.exits_on_map_gpa_range();
                announce(current, hypercall::begin(self.machine.rule, enabled, gpa, pages, attributes))
            }
            Action::PortWrite { port, ref data } => {
                self.data.clone_from(data);
                current.left = Some(Left::Port);
                Err(Stop::Port(port))
            }
            Action::ReadMsr { index } if self.machine.filters_msr(index, true) => {
                current.left = Some(Left::MsrRead);
                Err(Stop::MsrRead(index))
            }
            Action::ReadMsr { index } => {
                Ok(Outcome::MsrRead(self.kept.borrow().msrs.get(&index).copied().unwrap_or(0)))
            }
            Action::WriteMsr { index, value } if self.machine.filters_msr(index, false) => {
                current.left = Some(Left::MsrWrite);
                Err(Stop::MsrWrite { index, value })
            }
            Action::WriteMsr { index, value } => {
                self.kept.borrow_mut().msrs.insert(index, value);
                Ok(Outcome::MsrWritten)
            }
        }
    }
}

/// Does what is next for a conversion request.
fn announce(current: &mut Current, next: Next) -> std::result::Result<Outcome, Stop> {
    match next {
        Next::Ask { request, arguments } => {
            current.left = Some(Left::MapGpaRange(request));
            Err(Stop::MapGpaRange(arguments))
        }
        Next::Tell(answer) => Ok(Outcome::Answered(answer)),
    }
}

impl Vcpu for ModelVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        if self.interrupt.0.load(Ordering::SeqCst) {
            return Ok(Exit::Interrupted);
        }
        if let Err(errno) = self.machine.faults.before(Operation::Run) {
            return Exit::of_error(errno, self.id);
        }
        Ok(match self.work()? {
            Stop::Halt => Exit::Halt,
            Stop::Fault(fault) => Exit::MemoryFault(fault),
            Stop::NoBacking => Exit::NoBacking,
            Stop::Emulation => Exit::InternalError { suberror: EMULATION },
            Stop::MmioRead(gpa) => Exit::MmioRead { gpa, data: &mut self.data },
            Stop::MmioWrite(gpa) => Exit::MmioWrite { gpa, data: &self.data },
            Stop::Port(port) => Exit::IoOut { port, data: &self.data },
            Stop::MapGpaRange([gpa, pages, attributes]) => {
                let plain = self.machine.rule.vm_type.is_plain();
                Exit::MapGpaRange(MapGpaRange::new(gpa, pages, attributes, plain, &mut self.value))
            }
            Stop::MsrRead(index) => Exit::MsrRead(MsrRead::new(index, &mut self.value, &mut self.msr_error)),
            Stop::MsrWrite { index, value } => {
                // Refused until `accept_msr_write`.
                self.msr_error = 1;
                Exit::MsrWrite { index, value }
            }
        })
    }

    fn interrupter(&self) -> Result<Arc<dyn Interrupter>> {
        Ok(self.interrupt.clone())
    }

    fn start_at_once(&self) -> Result<()> {
        // A script waits for nobody.
        Ok(())
    }

    fn inject_nmi(&self) -> Result<()> {
        // No script looks at interrupts.
        Ok(())
    }

    fn excuse_pause(&self) -> Result<()> {
        Ok(())
    }

    fn set_cpuid(&self, _: &[CpuidEntry]) -> Result<()> {
        Ok(())
    }

    fn registers(&self) -> Result<Registers> {
        Ok(self.kept.borrow().registers)
    }

    fn set_registers(&self, registers: &Registers) -> Result<()> {
        self.kept.borrow_mut().registers = *registers;
        Ok(())
    }

    fn special_registers(&self) -> Result<SpecialRegisters> {
        Ok(self.kept.borrow().special_registers)
    }

    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()> {
        self.kept.borrow_mut().special_registers = *registers;
        Ok(())
    }

    fn set_msr(&self, index: u32, value: u64) -> Result<()> {
        self.kept.borrow_mut().msrs.insert(index, value);
        Ok(())
    }

    fn accept_msr_write(&mut self) {
        if self.current.as_ref().is_some_and(|current| current.left == Some(Left::MsrWrite)) {
            self.msr_error = 0;
        }
    }

    fn inject_general_protection(&mut self) -> Result<bool> {
        let injected = self.machine.faults.before(Operation::Inject);
        injected.map_err(failed("write", format!("events of vCPU {}", self.id)))?;
        // A script takes its exceptions at once.
        Ok(std::mem::replace(&mut self.general_protection, true))
    }

    fn pre_fault(&self, range: GpaRange) -> Result<u64> {
        self.machine.faults.pre_fault(range, |range| {
            for gpa in (range.start()..range.end()).step_by(PAGE_SIZE as usize) {
                match self.machine.populate(gpa) {
                    Ok(()) => {}
                    // What is done is told first, as if there had been nothing wrong.
                    Err(_) if gpa > range.start() => return Ok(gpa - range.start()),
                    Err(errno) => return Err(Error::PreFault { range, source: PreFaultError::from_errno(errno) }),
                }
            }
            Ok(range.len())
        })
    }
}
