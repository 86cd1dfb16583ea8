//! Conversions: walking the layout's steps, and undoing them.
//!
//! A guest chooses how many runs of pages a request falls apart into, so the lock is let go between batches of them, and
//! a machine that ends cuts the work short.

use std::sync::atomic::Ordering;

use arch::x86_64::memory_layout::{RamRange, Step};
use arch::x86_64::msr::Facility;
use arch::x86_64::request::{ConversionKind, ConversionRequest};
use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use super::{GuestRam, Record, pages_of};

/// How many runs of pages are converted in one turn at the lock.
const RUNS_PER_BATCH: usize = 256;

/// How far a conversion has come.
struct Progress {
    /// The first page that has not been looked at.
    first: u64,
    /// Whether any page changed.
    changed: bool,
}

/// Why a conversion was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// The hypervisor is using a page of the range for the guest.
    #[error("{range} holds memory that the hypervisor uses for vCPU {vcpu} ({facility:?})")]
    Lent {
        /// The range.
        range: GpaRange,
        /// The vCPU.
        vcpu: u8,
        /// What for.
        facility: Facility,
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
    /// An earlier conversion left the machine inconsistent, or the machine is ending.
    #[error("the machine is ending, or an earlier conversion failed half-way")]
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
        let mut changed = false;
        for (ram, part) in self.layout().split(request.range) {
            let mut first = ram.backing_offset(part.start()) / PAGE_SIZE;
            let end = first + part.pages();
            while first < end {
                let mut record = self.record();
                match self.convert_batch(&mut record, request, ram, first, end) {
                    Ok(next) => {
                        changed |= next.changed;
                        first = next.first;
                    }
                    Err(error) => {
                        record.failed += 1;
                        record.inconsistent |= matches!(error, ConversionError::Inconsistent { .. });
                        return Err(error);
                    }
                }
            }
        }
        if changed {
            let mut record = self.record();
            match request.kind {
                ConversionKind::Explicit => record.explicit += 1,
                ConversionKind::Implicit => record.implicit += 1,
                ConversionKind::Host => record.host += 1,
            }
        }
        Ok(())
    }

    /// Converts the next runs among the pages `first..end` of the backings, as many as fit into one turn at the lock.
    fn convert_batch(
        &self,
        record: &mut Record,
        request: ConversionRequest,
        ram: &RamRange,
        first: u64,
        end: u64,
    ) -> Result<Progress, ConversionError> {
        if record.inconsistent || self.ending.load(Ordering::Acquire) {
            return Err(ConversionError::Stopped);
        }
        if request.to == PageState::Private {
            refuse_lent(record, request.range)?;
        }
        let mut progress = Progress { first, changed: false };
        for _ in 0..RUNS_PER_BATCH {
            let Some((run, run_end)) = record.map.runs(progress.first, end, request.to.other()).next() else {
                progress.first = end;
                break;
            };
            self.convert_run(ram, run, run_end, request.to)?;
            record.map.set(run, run_end, request.to);
            progress = Progress { first: run_end, changed: true };
        }
        Ok(progress)
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
                // A step that says "again" has done a part of its work.
                let partly = matches!(
                    source,
                    hypervisor::Error::Attribute { source: hypervisor::AttributeError::Again { .. }, .. }
                );
                self.undo(range, &steps[..done + usize::from(partly)])?;
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
    let lent = |memory| pages_of(memory).is_some_and(|pages| pages.intersection(range).is_some());
    match record.paravirtual.iter().find(|(_, memory)| lent(*memory)) {
        Some(((vcpu, facility), _)) => Err(ConversionError::Lent { range, vcpu: *vcpu, facility: *facility }),
        None => Ok(()),
    }
}
