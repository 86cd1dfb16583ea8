//! Conversions: walking the layout's steps, and undoing them.

use arch::x86_64::memory_layout::{RamRange, Step};
use arch::x86_64::request::{ConversionKind, ConversionRequest};
use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use super::{GuestRam, Record, pages_of};

/// Why a conversion was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// The hypervisor is using a page of the range for the guest.
    #[error("{range} holds memory that the guest gave to the hypervisor by MSR {msr:#x} of vCPU {vcpu}")]
    Lent {
        /// The range.
        range: GpaRange,
        /// The vCPU.
        vcpu: u8,
        /// The MSR.
        msr: u32,
    },
    /// A step failed; all that was done to its pages is undone.
    #[error("cannot convert {range} to {to}")]
    Failed {
        /// The pages that stay as they were.
        range: GpaRange,
        /// The state they were to have.
        to: PageState,
        /// Why.
        #[source]
        source: hypervisor::Error,
    },
    /// A step failed, and so did its undo. The machine must stop.
    #[error("{range} is left between private and shared, and the guest can't go on")]
    Inconsistent {
        /// The pages.
        range: GpaRange,
        /// Why the undo failed.
        #[source]
        source: hypervisor::Error,
    },
    /// An earlier conversion left the machine inconsistent.
    #[error("an earlier conversion failed half-way, and the guest can't go on")]
    Stopped,
}

impl ConversionError {
    /// Whether the machine must stop.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Inconsistent { .. } | Self::Stopped)
    }
}

impl GuestRam {
    /// Converts a range. Parts that have the state already are left alone.
    ///
    /// # Errors
    /// The first part that could not be converted. Parts before it are converted, parts behind it are not; on each of
    /// them the map, the attributes and the backings agree.
    pub fn convert(&self, request: ConversionRequest) -> Result<(), ConversionError> {
        let mut record = self.record();
        let result = self.convert_locked(&mut record, request);
        match &result {
            Ok(false) => {}
            Ok(true) => match request.kind {
                ConversionKind::Explicit => record.explicit += 1,
                ConversionKind::Implicit => record.implicit += 1,
                ConversionKind::Host => record.host += 1,
            },
            Err(error) => {
                record.failed += 1;
                record.inconsistent |= error.is_fatal();
            }
        }
        result.map(|_| ())
    }

    /// Returns whether anything changed.
    fn convert_locked(&self, record: &mut Record, request: ConversionRequest) -> Result<bool, ConversionError> {
        if record.inconsistent {
            return Err(ConversionError::Stopped);
        }
        if request.to == PageState::Private {
            refuse_lent(record, request.range)?;
        }
        let mut changed = false;
        for (ram, part) in self.layout().split(request.range) {
            let first = ram.backing_offset(part.start()) / PAGE_SIZE;
            let runs: Vec<_> = record.map.runs(first, first + part.pages(), request.to.other()).collect();
            for (first, end) in runs {
                self.convert_run(ram, first, end, request.to)?;
                record.map.set(first, end, request.to);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Converts the pages `first..end` of the backings, all of which lie in `ram` and have the other state.
    fn convert_run(&self, ram: &RamRange, first: u64, end: u64, to: PageState) -> Result<(), ConversionError> {
        let start = ram.gpa.start() + (first * PAGE_SIZE - ram.offset);
        let out_of_range = |source: hypervisor::RangeError, range| ConversionError::Failed {
            range,
            to,
            source: hypervisor::Error::from(source),
        };
        let range = GpaRange::new(start, (end - first) * PAGE_SIZE).map_err(|source| out_of_range(source, ram.gpa))?;
        let steps = ram.conversion(range, to).map_err(|source| out_of_range(source, range))?;
        for (done, step) in steps.iter().enumerate() {
            if let Err(source) = self.perform(step) {
                self.undo(range, &steps[..done])?;
                return Err(ConversionError::Failed { range, to, source });
            }
        }
        Ok(())
    }

    fn perform(&self, step: &Step) -> hypervisor::Result<()> {
        match *step {
            Step::SetAttribute { range, state } => self.vm.set_attribute(range, state),
            Step::Discard { side, offset, size } => match self.backing(side) {
                Some(backing) => self.vm.discard(&backing, offset, size),
                None => Ok(()),
            },
        }
    }

    fn undo(&self, range: GpaRange, done: &[Step]) -> Result<(), ConversionError> {
        for step in done.iter().rev() {
            // A discard is always last, so it is never among what is undone.
            if let Step::SetAttribute { range: place, state } = *step {
                let undone = self.vm.set_attribute(place, state.other());
                undone.map_err(|source| ConversionError::Inconsistent { range, source })?;
            }
        }
        Ok(())
    }
}

/// Refuses to make pages private that KVM writes to: it would go on writing to their shared backing.
fn refuse_lent(record: &Record, range: GpaRange) -> Result<(), ConversionError> {
    let lent =
        |(_, memory): &&((u8, u32), _)| pages_of(*memory).is_some_and(|pages| pages.intersection(range).is_some());
    match record.paravirtual.iter().find(lent) {
        Some(((vcpu, msr), _)) => Err(ConversionError::Lent { range, vcpu: *vcpu, msr: *msr }),
        None => Ok(()),
    }
}
