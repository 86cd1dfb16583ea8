//! Setting KVM's attributes of a piece: all of them, or none.

use std::time::Duration;

use arch::x86_64::memory_layout::Step;
use hypervisor::{AttributeError, Error, GpaRange, PageState, RangeError};

use super::{ConversionError, Piece};
use crate::memory::GuestRam;
use crate::memory::ledger::Ledger;

/// How often a call that made no mistake is made again: a signal came, or a page is pinned for a moment.
const ATTEMPTS: u32 = 16;

/// How long to wait for a page that is pinned.
const PINNED_NAP: Duration = Duration::from_millis(1);

impl GuestRam {
    /// Sets the attribute on each alias of the piece that follows its state. On an error they are as they were.
    pub(super) fn flip(&self, ledger: &mut Ledger, piece: &Piece<'_>, to: PageState) -> Result<(), ConversionError> {
        for (index, step) in piece.ram.conversion(piece.gpa, to).enumerate() {
            let Step::SetAttribute { range, state } = step.map_err(|source| piece.failed(to, source.into()))? else {
                continue;
            };
            let Err(Incomplete { source, partly }) = self.set_attribute(range, state) else { continue };
            let before = piece.ram.conversion(piece.gpa, to).take(index).filter_map(|step| match step {
                Ok(Step::SetAttribute { range, .. }) => Some(range),
                _ => None,
            });
            let done: Vec<GpaRange> = before.chain(partly).collect();
            for range in done.into_iter().rev() {
                self.set_attribute(range, to.other()).map_err(|Incomplete { source, .. }| {
                    ledger.inconsistent = true;
                    ConversionError::Inconsistent { range: piece.gpa, source }
                })?;
            }
            return Err(piece.failed(to, source));
        }
        Ok(())
    }

    fn set_attribute(&self, range: GpaRange, state: PageState) -> Result<(), Incomplete> {
        let (mut rest, mut attempts) = (range, 1);
        loop {
            let Err(source) = self.vm.set_attribute(rest, state) else { return Ok(()) };
            let interrupted = source.errno() == Some(libc::EINTR);
            let mut again = interrupted;
            if let Error::Attribute { source: AttributeError::Again { done }, .. } = &source {
                again = true;
                match behind(rest, *done) {
                    Ok(Some(left)) => rest = left,
                    Ok(None) => return Ok(()),
                    Err(_) => again = false,
                }
            }
            if !again || attempts == ATTEMPTS {
                let partly =
                    rest.start().checked_sub(range.start()).and_then(|size| GpaRange::new(range.start(), size).ok());
                return Err(Incomplete { source, partly });
            }
            attempts += 1;
            if !interrupted {
                std::thread::sleep(PINNED_NAP);
            }
        }
    }
}

/// What is left of a range behind its first bytes.
fn behind(range: GpaRange, done: u64) -> Result<Option<GpaRange>, RangeError> {
    match range.len().checked_sub(done) {
        None | Some(0) => Ok(None),
        Some(left) => GpaRange::new(range.start() + done, left).map(Some),
    }
}

/// Why an attribute was not set, and where it was nonetheless.
struct Incomplete {
    source: Error,
    partly: Option<GpaRange>,
}
