//! A vCPU of KVM's: registers, and the translation of its exits.
#![expect(unsafe_code, reason = "kvm-ioctls does not decode the suberror of an internal error")]

use std::io;
use std::sync::{Arc, PoisonError};

use kvm_bindings::{
    CpuId, KVM_EXIT_X86_WRMSR, KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::immediate_exit::ImmediateExit;
use super::injected::Injected;
use super::pre_fault::pre_fault;
use super::probe::KVM_HC_MAP_GPA_RANGE;
use super::vm::Regions;
use crate::faults::Operation;
use crate::x86_64::{CpuidEntry, Registers, SpecialRegisters};
use crate::{
    Error, Exit, GpaRange, Interrupter, MapGpaRange, MemoryFault, MsrRead, PreFaultError, Result, Vcpu, VmType,
};

/// `KVM_MEMORY_EXIT_FLAG_PRIVATE`: the access was a private one (Linux `include/uapi/linux/kvm.h`).
const FAULT_PRIVATE: u64 = 1 << 3;

/// Vectors of exceptions.
const DOUBLE_FAULT: u8 = 8;
const GENERAL_PROTECTION: u8 = 13;

#[derive(Debug)]
pub(super) struct KvmVcpu {
    // Drops before the regions that the guest can reach through it.
    fd: VcpuFd,
    id: u8,
    vm_type: VmType,
    injected: Injected,
    regions: Regions,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, id: u8, vm_type: VmType, regions: Regions, injected: Injected) -> Self {
        Self { fd, id, vm_type, injected, regions }
    }

    fn subject(&self, what: &str) -> String {
        format!("{what} of vCPU {}", self.id)
    }
}

/// The last internal error's suberror.
fn suberror(run: *const kvm_run) -> u32 {
    // SAFETY: `run` is the vCPU's kvm_run page, mapped for as long as its VcpuFd lives.
    let exit = unsafe { (*run).__bindgen_anon_1 };
    // SAFETY: the vCPU has just come back from KVM_RUN with KVM_EXIT_INTERNAL_ERROR, so the kernel has filled this
    // member of the union.
    unsafe { exit.internal.suberror }
}

/// Whether a general protection fault on the way to the handler of this exception makes a double fault: for divide
/// errors, double faults, those of segments, and page faults.
fn escalates(vector: u8) -> bool {
    matches!(vector, 0 | DOUBLE_FAULT | 10..=GENERAL_PROTECTION | 14)
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        let (id, plain) = (self.id, self.vm_type.is_plain());
        let run: *const kvm_run = self.fd.get_kvm_run();
        let exit = match self.injected.before(Operation::Run).and_then(|()| self.fd.run()) {
            Ok(exit) => exit,
            Err(errno) => return Exit::of_error(errno.errno(), id),
        };
        Ok(match exit {
            VcpuExit::IoIn(port, data) => {
                data.fill(0xff);
                Exit::IoIn { port, data }
            }
            VcpuExit::IoOut(port, data) => Exit::IoOut { port, data },
            VcpuExit::MmioRead(gpa, data) => {
                data.fill(0xff);
                Exit::MmioRead { gpa, data }
            }
            VcpuExit::MmioWrite(gpa, data) => Exit::MmioWrite { gpa, data },
            VcpuExit::X86Rdmsr(exit) => Exit::MsrRead(MsrRead::new(exit.index, exit.data, exit.error)),
            VcpuExit::X86Wrmsr(exit) => {
                // Refused until `accept_msr_write`.
                *exit.error = 1;
                Exit::MsrWrite { index: exit.index, value: exit.data }
            }
            VcpuExit::MemoryFault { flags, gpa, size } => {
                let fault = MemoryFault { gpa, size, private: flags & FAULT_PRIVATE != 0 };
                // kvm-ioctls makes one exit of both errors that come with this reason; nothing has run since.
                if io::Error::last_os_error().raw_os_error() == Some(libc::EHWPOISON) {
                    Exit::Poisoned(fault)
                } else {
                    Exit::MemoryFault(fault)
                }
            }
            VcpuExit::Hypercall(call) if call.nr == KVM_HC_MAP_GPA_RANGE => {
                let [gpa, pages, attributes, ..] = call.args;
                Exit::MapGpaRange(MapGpaRange::new(gpa, pages, attributes, plain, call.ret))
            }
            VcpuExit::Hypercall(call) => {
                *call.ret = (-i64::from(libc::ENOSYS)) as u64;
                Exit::Unexpected(format!("hypercall {}", call.nr))
            }
            VcpuExit::Hlt => Exit::Halt,
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::Intr => Exit::Interrupted,
            VcpuExit::InternalError => Exit::InternalError { suberror: suberror(run) },
            VcpuExit::FailEntry(reason, _cpu) => Exit::FailedEntry { reason },
            other => Exit::Unexpected(format!("{other:?}")),
        })
    }

    fn interrupter(&self) -> Result<Arc<dyn Interrupter>> {
        let run = ImmediateExit::new(&self.fd).map_err(|source| Error::Failed {
            operation: "map",
            subject: self.subject("the run page"),
            source,
        })?;
        Ok(Arc::new(run))
    }

    fn start_at_once(&self) -> Result<()> {
        let state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(state).map_err(Error::failed("write", self.subject("the running state")))
    }

    fn inject_nmi(&self) -> Result<()> {
        // KVM takes an interrupt that is pending for something to run, whatever the processor waits for: until the SIPI,
        // KVM_RUN would come back with EAGAIN at once, each time (Linux arch/x86/kvm/x86.c, kvm_vcpu_has_events).
        let state = self.fd.get_mp_state().map_err(Error::failed("read", self.subject("the running state")))?;
        if !matches!(state.mp_state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED) {
            return Ok(());
        }
        self.fd.nmi().map_err(Error::failed("send", self.subject("a non-maskable interrupt")))
    }

    fn excuse_pause(&self) -> Result<()> {
        match self.fd.kvmclock_ctrl() {
            // The guest has no paravirtual clock.
            Err(errno) if errno.errno() == libc::EINVAL => Ok(()),
            result => result.map_err(Error::failed("excuse", self.subject("a pause"))),
        }
    }

    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()> {
        let subject = self.subject("CPUID");
        let cpuid = CpuId::from_entries(entries).map_err(|source| Error::Failed {
            operation: "hold",
            subject: subject.clone(),
            source: io::Error::other(format!("{} entries: {source:?}", entries.len())),
        })?;
        self.fd.set_cpuid2(&cpuid).map_err(Error::failed("set", subject))
    }

    fn registers(&self) -> Result<Registers> {
        self.fd.get_regs().map_err(Error::failed("read", self.subject("registers")))
    }

    fn set_registers(&self, registers: &Registers) -> Result<()> {
        self.fd.set_regs(registers).map_err(Error::failed("write", self.subject("registers")))
    }

    fn special_registers(&self) -> Result<SpecialRegisters> {
        self.fd.get_sregs().map_err(Error::failed("read", self.subject("special registers")))
    }

    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()> {
        self.fd.set_sregs(registers).map_err(Error::failed("write", self.subject("special registers")))
    }

    fn set_msr(&self, index: u32, value: u64) -> Result<()> {
        let subject = self.subject(&format!("MSR {index:#x} (to {value:#x})"));
        let refused = |source| Error::Failed { operation: "write", subject: subject.clone(), source };
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data: value, ..Default::default() }])
            .map_err(|error| refused(io::Error::other(format!("{error:?}"))))?;
        match self.fd.set_msrs(&msrs) {
            Ok(1) => Ok(()),
            Ok(_) => Err(refused(io::Error::new(io::ErrorKind::InvalidInput, "KVM refuses the value"))),
            Err(errno) => Err(refused(errno.into())),
        }
    }

    fn accept_msr_write(&mut self) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_X86_WRMSR {
            run.__bindgen_anon_1.msr.error = 0;
        }
    }

    fn inject_general_protection(&mut self) -> Result<bool> {
        let failed = |operation| Error::failed(operation, self.subject("events"));
        let mut events = self.fd.get_vcpu_events().map_err(failed("read"))?;
        let exception = &mut events.exception;
        // What stood in the way of an exception's delivery comes on top of that exception.
        let taking = exception.injected != 0;
        let taken = if taking && escalates(exception.nr) { DOUBLE_FAULT } else { GENERAL_PROTECTION };
        (exception.nr, exception.has_error_code, exception.error_code) = (taken, 1, 0);
        (exception.injected, exception.pending) = (1, 0);
        self.injected
            .before(Operation::Inject)
            .and_then(|()| self.fd.set_vcpu_events(&events))
            .map_err(failed("write"))?;
        Ok(taking)
    }

    fn pre_fault(&self, range: GpaRange) -> Result<u64> {
        // Held while the kernel is at it: see `Regions`.
        let _regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        self.injected.pre_fault(range, |range| {
            pre_fault(&self.fd, range)
                .map_err(|errno| Error::PreFault { range, source: PreFaultError::from_errno(errno.errno()) })
        })
    }
}
