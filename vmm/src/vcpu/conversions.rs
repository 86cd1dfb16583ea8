//! Conversions that the guest asks for: announced by a hypercall, or implied by an access that contradicts the map.
//!
//! Whatever is wrong with an announced one, the guest is told and runs on. A refused access is a fault of the guest's; one that
//! can't be granted otherwise, or comes back for ever, ends the machine.

use arch::x86_64::private_faults::{self, ConversionRequest};
use hypervisor::{MapGpaRange, MapGpaRangeReply, MemoryFault};

use super::{Next, Phase, VcpuContext};
use crate::Result;
use crate::error::chain;
use crate::memory::ConversionError;

/// A fault that comes back this often at one page, with nothing else between, is one that retrying does not resolve.
pub(super) const MAX_REPEATED_FAULTS: u32 = 64;

impl VcpuContext {
    /// Converts, as often as it takes: a pause interrupts, and the end of the machine is an error.
    fn convert(&self, request: ConversionRequest) -> std::result::Result<bool, ConversionError> {
        loop {
            match self.ram.convert(request) {
                Err(ConversionError::Interrupted) => {
                    if !self.control.rest(self.id) {
                        return Err(ConversionError::Stopped);
                    }
                }
                result => return result,
            }
        }
    }

    /// A conversion that the guest announces. Whatever is wrong with it, the guest is told and runs on.
    pub(super) fn map_gpa_range(&mut self, exit: MapGpaRange<'_>) -> Result<()> {
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
    pub(super) fn memory_fault(&mut self, fault: MemoryFault, faults: &mut RepeatedFaults) -> Result<Next> {
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
pub(super) struct RepeatedFaults {
    last: Option<MemoryFault>,
    times: u32,
}

impl RepeatedFaults {
    fn count(&mut self, fault: MemoryFault) -> u32 {
        self.times = if self.last == Some(fault) { self.times + 1 } else { 0 };
        self.last = Some(fault);
        self.times
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
