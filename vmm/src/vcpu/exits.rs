//! What each exit comes to.

use arch::x86_64::map::{LAUNCH_PORT, LEAVING_PORT, PARKING_PORT};
use hypervisor::Exit;

use super::conversions::RepeatedFaults;
use super::{Next, Phase, VcpuContext};
use crate::devices::power::PowerRequest;
use crate::paravirtual;
use crate::{Result, Stop};

impl VcpuContext {
    /// Does what the exit asks for, as far as the vCPU itself is not needed for it.
    pub(super) fn answer(&mut self, exit: Exit<'_>, faults: &mut RepeatedFaults) -> Result<Next> {
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
}
