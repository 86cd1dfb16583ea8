//! A vCPU's life: run, answer the exit, run again, until the machine stops.
//!
//! | room | what is in it |
//! |---|---|
//! | `exits` | what each exit comes to |
//! | `conversions` | conversions that the guest asks for |
//! | `phase` | what the processor is at, from the first instruction on |
//!
//! Between an exit and the next run the vCPU rests if the machine is paused. A conversion that a pause interrupts is made anew
//! afterwards, before the exit is answered, so the guest sees nothing of it.

mod conversions;
mod exits;
mod phase;

use std::sync::Arc;

use arch::x86_64::launch::parking;
use hypervisor::Vcpu;

use crate::devices::Devices;
use crate::machine::{Control, LaunchWindow, Order, Starts};
use crate::memory::GuestRam;
use crate::paravirtual::{self, MsrAnswer};
use crate::{Error, Result, Stop};

use conversions::RepeatedFaults;
pub(crate) use phase::Phase;

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
                return Ok(Some(Stop::TripleFault));
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
}

#[cfg(test)]
pub(crate) mod tests;
