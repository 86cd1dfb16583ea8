//! A vCPU's life: run, answer the exit, run again, until the machine stops.
//!
//! Between an exit and the next run the vCPU rests if the machine is paused. A conversion that a pause interrupts is made anew
//! afterwards, before the exit is answered, so the guest sees nothing of it.

mod phase;

use std::sync::Arc;

use arch::x86_64::launch::parking;
use arch::x86_64::map::{LAUNCH_PORT, LEAVING_PORT, PARKING_PORT};
use arch::x86_64::private_faults::{self, ConversionRequest};
use hypervisor::{Exit, MapGpaRange, MapGpaRangeReply, MemoryFault, Vcpu};

use crate::devices::Devices;
use crate::devices::power::PowerRequest;
use crate::error::chain;
use crate::machine::{Control, LaunchWindow, Order, Starts};
use crate::memory::{ConversionError, GuestRam};
use crate::paravirtual::{self, MsrAnswer};
use crate::{Error, Result, Stop};

pub(crate) use phase::Phase;

/// A fault that comes back this often at one page, with nothing else between, is one that retrying does not resolve.
const MAX_REPEATED_FAULTS: u32 = 64;

/// What a vCPU works with.
pub(crate) struct VcpuContext {
    pub(crate) id: u8,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) devices: Arc<Devices>,
    /// What the machine's threads are told.
    pub(crate) control: Arc<Control>,
    /// Processors that the guest has woken.
    pub(crate) starts: Arc<Starts>,
    /// What the processor is at.
    pub(crate) phase: Phase,
    /// What it copies while it is launching.
    pub(crate) window: Option<LaunchWindow>,
}

/// What an exit comes to.
enum Next {
    Run,
    Stop(Stop),
    /// Ask the vCPU, which the exit still borrows: write an MSR, or give up with its instruction pointer.
    WriteMsr {
        index: u32,
        value: u64,
    },
    GiveUp(String),
    TripleFault,
    /// A parked processor was interrupted, or shut down: look whether the guest has taken it away by INIT.
    LookWhetherLost,
    /// Refuse the access that the guest is about to make again.
    GeneralProtection,
}

/// Runs a vCPU until the machine stops. `None` if it was told to, or if this processor alone comes to its end.
pub(crate) fn run(mut vcpu: Box<dyn Vcpu>, mut context: VcpuContext) -> Result<Option<Stop>> {
    let mut faults = RepeatedFaults::default();
    while context.may_run(&*vcpu)? {
        let next = context.answer(vcpu.run()?, &mut faults)?;
        context.look_whether_it_has_left(&*vcpu)?;
        match next {
            Next::Run => {}
            Next::Stop(stop) => return Ok(Some(stop)),
            Next::WriteMsr { index, value } => {
                if paravirtual::write(&*vcpu, context.id, &context.ram, index, value) == MsrAnswer::Accept {
                    vcpu.accept_msr_write();
                }
            }
            Next::GeneralProtection => {
                // A guest that took the last fault has got on since.
                if !vcpu.inject_general_protection()? {
                    faults.clear();
                }
            }
            Next::TripleFault => {
                // A processor that shut down by itself has lost its registers: KVM has reset it.
                let (rip, rsp) = vcpu.registers().map_or((0, 0), |registers| (registers.rip, registers.rsp));
                let cr2 = vcpu.special_registers().map_or(0, |registers| registers.cr2);
                let id = context.id;
                tracing::warn!(
                    "vCPU {id}: the guest crashed (triple fault; rip {rip:#x}, rsp {rsp:#x}, cr2 {cr2:#x}): resetting it"
                );
                return Ok(Some(Stop::Reset));
            }
            Next::LookWhetherLost if parking::is_lost(&vcpu.special_registers()?) => {
                tracing::warn!(
                    "the guest starts processor {} by INIT and SIPI, which isolation=software can't have: it goes without \
                     that processor (Linux needs CONFIG_ACPI_MADT_WAKEUP to start it)",
                    context.id
                );
                context.starts.end(context.id, &context.ram);
                return Ok(None);
            }
            Next::LookWhetherLost => {}
            Next::GiveUp(reason) => {
                let rip = vcpu.registers().map_or(0, |registers| registers.rip);
                return Err(Error::Vcpu { id: context.id, rip, reason });
            }
        }
    }
    Ok(None)
}

impl VcpuContext {
    /// Rests as long as the vCPU must not run. Returns whether it may then.
    fn may_run(&mut self, vcpu: &dyn Vcpu) -> Result<bool> {
        let Order::Run { rested, nmi } = self.control.before_run(self.id) else { return Ok(false) };
        if rested {
            vcpu.excuse_pause()?;
        }
        // A parked processor has no handler for it yet.
        if nmi && self.phase == Phase::Running {
            vcpu.inject_nmi()?;
        }
        Ok(true)
    }

    /// The shared copy of low memory goes once nobody needs it.
    fn look_whether_it_has_left(&mut self, vcpu: &dyn Vcpu) -> Result<()> {
        if self.phase == Phase::Leaving
            && let Some(c_bit) = self.ram.layout().c_bit()
            && parking::has_left(&vcpu.special_registers()?, c_bit)
        {
            self.phase = Phase::Running;
            self.starts.end(self.id, &self.ram);
        }
        Ok(())
    }

    fn convert(&self, request: ConversionRequest) -> std::result::Result<bool, ConversionError> {
        self.until_done(|| self.ram.convert(request))
    }

    /// Converts, as often as it takes: a pause interrupts, and the end of the machine is an error.
    fn until_done<T>(
        &self,
        convert: impl Fn() -> std::result::Result<T, ConversionError>,
    ) -> std::result::Result<T, ConversionError> {
        loop {
            match convert() {
                Err(ConversionError::Interrupted) => {
                    if !self.control.rest(self.id) {
                        return Err(ConversionError::Stopped);
                    }
                }
                result => return result,
            }
        }
    }

    fn answer(&mut self, exit: Exit<'_>, faults: &mut RepeatedFaults) -> Result<Next> {
        if !matches!(exit, Exit::MemoryFault(_) | Exit::Interrupted) {
            faults.clear();
        }
        Ok(match exit {
            Exit::IoIn { port: PARKING_PORT, .. } if self.is_parked() => {
                self.control.nap(self.id, self.phase.nap());
                Next::Run
            }
            Exit::IoIn { port, data } => {
                self.devices.read(port, data);
                Next::Run
            }
            Exit::IoOut { port: LAUNCH_PORT, .. } if self.phase == Phase::Launching => {
                if let Some(window) = self.window.take() {
                    window.close()?;
                }
                self.phase = Phase::Running;
                self.control.launch();
                Next::Run
            }
            Exit::IoOut { port: LEAVING_PORT, .. } if self.is_parked() => {
                self.phase = Phase::Leaving;
                self.starts.begin(self.id);
                self.control.nudge();
                Next::Run
            }
            Exit::IoOut { port, data } => match self.devices.write(port, data) {
                None => Next::Run,
                Some(PowerRequest::Off) => Next::Stop(Stop::PowerOff),
                Some(PowerRequest::Reset) => Next::Stop(Stop::Reset),
            },
            Exit::MapGpaRange(exit) => {
                self.map_gpa_range(exit)?;
                Next::Run
            }
            Exit::MemoryFault(fault) => self.memory_fault(fault, faults)?,
            Exit::MsrRead(exit) => {
                // An MSR that has no value refuses by being dropped.
                if let Some(value) = paravirtual::read(exit.index) {
                    exit.reply(value);
                }
                Next::Run
            }
            Exit::MsrWrite { index, value } => Next::WriteMsr { index, value },
            // KVM says "no memory there" of RAM, too, where it could not get at it for an instruction that it emulates.
            Exit::MmioRead { gpa, .. } | Exit::MmioWrite { gpa, .. } if self.ram.layout().locate(gpa).is_some() => {
                Next::GiveUp(format!("KVM could not reach {gpa:#x} to emulate an instruction there"))
            }
            Exit::Interrupted | Exit::Shutdown if self.is_parked() => Next::LookWhetherLost,
            Exit::MmioRead { gpa, data } => {
                self.devices.read_memory(gpa, data);
                Next::Run
            }
            Exit::MmioWrite { gpa, data } => {
                self.devices.write_memory(gpa, data);
                Next::Run
            }
            Exit::Interrupted => Next::Run,
            Exit::Halt => Next::GiveUp("it halted, with no interrupt controller to wake it".into()),
            Exit::Shutdown if self.phase == Phase::Launching => {
                Next::GiveUp("it crashed before it reached the kernel".into())
            }
            // A triple fault resets a PC.
            Exit::Shutdown => Next::TripleFault,
            Exit::InternalError { suberror } => {
                Next::GiveUp(format!("KVM could not emulate an instruction (suberror {suberror})"))
            }
            Exit::FailedEntry { reason } => Next::GiveUp(format!("the processor refused to enter it ({reason:#x})")),
            Exit::NoBacking => Next::GiveUp("it touched memory that the host could not provide".into()),
            Exit::Poisoned(fault) => Next::GiveUp(format!("the host's memory behind {:#x} is broken", fault.gpa)),
            Exit::Unexpected(exit) => Next::GiveUp(format!("unexpected exit: {exit}")),
        })
    }

    fn is_parked(&self) -> bool {
        matches!(self.phase, Phase::Parked { .. })
    }

    /// A conversion that the guest announces. Whatever is wrong with it, the guest is told and runs on.
    fn map_gpa_range(&mut self, exit: MapGpaRange<'_>) -> Result<()> {
        let request = private_faults::from_map_gpa_range(self.ram.layout(), exit.gpa, exit.pages, exit.attributes);
        let reply = match request {
            // Launch code announces nothing.
            _ if self.phase == Phase::Launching => MapGpaRangeReply::Invalid,
            Ok(None) => MapGpaRangeReply::Done,
            Ok(Some(request)) => match self.convert(request) {
                Ok(_) => MapGpaRangeReply::Done,
                Err(error) => {
                    self.survive(error)?;
                    MapGpaRangeReply::Invalid
                }
            },
            Err(refusal) => {
                self.ram.count_refusal();
                tracing::debug!(
                    "vCPU {}: refused a conversion of {:#x} pages at {:#x}: {refusal}",
                    self.id,
                    exit.pages,
                    exit.gpa
                );
                MapGpaRangeReply::Invalid
            }
        };
        exit.reply(reply);
        Ok(())
    }

    /// An access that contradicts the map: an implicit conversion, or the end.
    fn memory_fault(&mut self, fault: MemoryFault, faults: &mut RepeatedFaults) -> Result<Next> {
        let Ok(request) = private_faults::from_memory_fault(self.ram.layout(), fault) else {
            return Ok(Next::GiveUp(format!("no conversion resolves its access to {:#x}", fault.gpa)));
        };
        if faults.count(fault) > MAX_REPEATED_FAULTS {
            return Ok(Next::GiveUp(format!("its access to {:#x} faults again and again", fault.gpa)));
        }
        match self.convert(request) {
            Ok(changed) => {
                if changed {
                    faults.clear();
                }
                Ok(Next::Run)
            }
            // The guest's own doing: it gets the fault, and runs on. One whose stack lies there faults for ever.
            Err(error @ (ConversionError::Refused { .. } | ConversionError::Lent { .. })) => {
                self.survive(error)?;
                Ok(Next::GeneralProtection)
            }
            Err(error) => {
                let reason = format!("its access to {:#x} could not be granted: {}", fault.gpa, chain(&error));
                self.survive(error)?;
                Ok(Next::GiveUp(reason))
            }
        }
    }

    /// Passes on an error that the machine can't survive, and reports any other.
    fn survive(&self, error: ConversionError) -> Result<()> {
        if error.is_fatal() {
            return Err(error.into());
        }
        tracing::debug!("vCPU {}: {}", self.id, chain(&error));
        Ok(())
    }
}

/// How often the last fault came back.
#[derive(Default)]
struct RepeatedFaults {
    last: Option<MemoryFault>,
    times: u32,
}

impl RepeatedFaults {
    fn count(&mut self, fault: MemoryFault) -> u32 {
        self.times = if self.last == Some(fault) { self.times + 1 } else { 0 };
        self.last = Some(fault);
        self.times
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use arch::x86_64::map::{RESET_PORT, RESET_VALUE};
    use arch::x86_64::{Isolation, MemoryLayout};
    use hypervisor::model::{Action, ModelHypervisor, ModelVm};
    use hypervisor::x86_64::{CpuidEntry, Registers, SpecialRegisters};
    use hypervisor::{GpaRange, Interrupter, Vm, VmType};
    use std::sync::atomic::Ordering;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use crate::config::SerialConfig;
    use crate::console::Output;
    use crate::devices::cmos::Cmos;
    use crate::devices::manager::DeviceManager;
    use crate::devices::serial::SerialDevice;
    use crate::memory::RamOptions;
    use crate::memory::conversion::{Policy, Rule};

    const PAGE: u64 = 2 << 20;

    /// A vCPU that makes the same access over and over, whatever is done about it.
    #[derive(Default)]
    struct Stubborn {
        runs: u32,
        /// How often it takes its faults, before it can't any more.
        takes: u32,
        protection_faults: Arc<std::sync::atomic::AtomicU32>,
    }

    /// Nobody interrupts these vCPUs.
    struct Never;

    impl Interrupter for Never {
        fn set(&self, _: bool) {}
    }

    impl Vcpu for Stubborn {
        fn run(&mut self) -> hypervisor::Result<Exit<'_>> {
            self.runs += 1;
            assert!(self.runs < 10_000, "nobody ends it");
            Ok(Exit::MemoryFault(MemoryFault { gpa: PAGE, size: 4096, private: true }))
        }
        fn inject_general_protection(&mut self) -> hypervisor::Result<bool> {
            Ok(self.protection_faults.fetch_add(1, Ordering::Relaxed) >= self.takes)
        }
        fn registers(&self) -> hypervisor::Result<Registers> {
            Ok(Registers { rip: 0x1234, ..Registers::default() })
        }
        fn set_cpuid(&self, _: &[CpuidEntry]) -> hypervisor::Result<()> {
            Ok(())
        }
        fn set_registers(&self, _: &Registers) -> hypervisor::Result<()> {
            Ok(())
        }
        fn special_registers(&self) -> hypervisor::Result<SpecialRegisters> {
            Ok(SpecialRegisters::default())
        }
        fn set_special_registers(&self, _: &SpecialRegisters) -> hypervisor::Result<()> {
            Ok(())
        }
        fn set_msr(&self, _: u32, _: u64) -> hypervisor::Result<()> {
            Ok(())
        }
        fn accept_msr_write(&mut self) {}
        fn interrupter(&self) -> hypervisor::Result<Arc<dyn Interrupter>> {
            Ok(Arc::new(Never))
        }
        fn start_at_once(&self) -> hypervisor::Result<()> {
            Ok(())
        }
        fn inject_nmi(&self) -> hypervisor::Result<()> {
            Ok(())
        }
        fn excuse_pause(&self) -> hypervisor::Result<()> {
            Ok(())
        }
        fn pre_fault(&self, range: GpaRange) -> hypervisor::Result<u64> {
            Ok(range.len())
        }
    }

    /// What a vCPU works with, in a guest that has been launched.
    pub(crate) fn context(policy: Policy) -> VcpuContext {
        let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
        let context = context_in(vm, policy);
        context.ram.make_all_private().unwrap();
        context
    }

    fn context_in(vm: Arc<ModelVm>, policy: Policy) -> VcpuContext {
        let layout = MemoryLayout::new(Isolation::Software, 4 << 20, 48).unwrap();
        vm.create_irqchip().unwrap();
        let ram = Arc::new(GuestRam::new(vm.clone(), layout, RamOptions { policy, ..RamOptions::default() }).unwrap());
        let control = Arc::new(Control::new(vec![Arc::new(Never)], true));
        let output = Output::new(SerialConfig::Null).writer(control.clone()).unwrap();
        let serial = SerialDevice::new(EventFd::new(EFD_NONBLOCK).unwrap(), output);
        let manager = DeviceManager::new(vm, ram.devices().clone(), true).unwrap();
        let devices = Arc::new(Devices { serial, console: None, cmos: Cmos::new(), manager });
        VcpuContext {
            id: 0,
            ram,
            devices,
            control,
            starts: Arc::new(Starts::new(Vec::new())),
            phase: Phase::Running,
            window: None,
        }
    }

    #[test]
    fn the_window_goes_when_the_launch_code_is_done_and_the_port_works_once() {
        let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
        let range = GpaRange::new(1 << 46, PAGE).unwrap();
        let window = || LaunchWindow::open(vm.clone(), range);
        let mut context = VcpuContext { phase: Phase::Launching, ..context_in(vm.clone(), Policy::default()) };
        context.window = Some(window().unwrap());
        assert!(window().is_err(), "it is there");
        let vcpu = vm.create_vcpu(0).unwrap();
        let port = |port, value| Action::PortWrite { port, data: vec![value] };
        for action in [port(LAUNCH_PORT, 0), port(LAUNCH_PORT, 0), port(RESET_PORT, RESET_VALUE)] {
            vm.script(0).push(action);
        }
        assert_eq!(run(vcpu, context).unwrap(), Some(Stop::Reset));
        window().unwrap();
    }

    #[test]
    fn a_fault_that_comes_again_and_again_ends_in_an_error() {
        let error = run(Box::new(Stubborn::default()), context(Policy::default())).unwrap_err();
        assert_eq!(error.to_string(), "vCPU 0 stopped at 0x1234: its access to 0x200000 faults again and again");
    }

    #[test]
    fn a_guest_that_can_not_take_the_fault_of_a_refused_access_ends_in_an_error() {
        let policy = Policy { implicit: Rule::Refuse, ..Policy::default() };
        // Each one that it takes is progress, however many there are.
        let vcpu = Stubborn { takes: 500, ..Stubborn::default() };
        let protection_faults = vcpu.protection_faults.clone();
        let error = run(Box::new(vcpu), context(policy)).unwrap_err();
        assert!(error.to_string().ends_with("its access to 0x200000 faults again and again"), "{error}");
        assert_eq!(protection_faults.load(Ordering::Relaxed), 500 + MAX_REPEATED_FAULTS + 1);
    }
}
