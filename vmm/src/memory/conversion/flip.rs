//! Setting KVM's attributes of a piece: all of them, or none.

use std::time::Duration;

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
    #[inline(always)]
    pub(super) fn flip(&self, ledger: &mut Ledger, piece: &Piece<'_>, to: PageState) -> Result<(), ConversionError> {
        let _busy = self.discards.busy(piece.pages);
        for (done, range) in piece.ram.attributes(piece.gpa).enumerate() {
            let range = range.map_err(|source| piece.failed(to, source.into()))?;
            if let Err(source) = self.vm.set_attribute(range, to)
                && let Err(incomplete) = self.set_rest(range, to, source)
            {
                return Err(self.unflip(ledger, piece, to, done, incomplete));
            }
        }
        Ok(())
    }

    /// Undoes what was done of a flip that failed behind so many aliases, and tells what is to be told of it.
    #[cold]
    fn unflip(
        &self,
        ledger: &mut Ledger,
        piece: &Piece<'_>,
        to: PageState,
        done: usize,
        Incomplete { source, partly }: Incomplete,
    ) -> ConversionError {
        let whole = piece.ram.attributes(piece.gpa).take(done).filter_map(Result::ok);
        let done: Vec<GpaRange> = whole.chain(partly).collect();
        let back = to.other();
        for range in done.into_iter().rev() {
            let undone = self.vm.set_attribute(range, back).or_else(|source| self.set_rest(range, back, source));
            if let Err(Incomplete { source, .. }) = undone {
                ledger.inconsistent = true;
                return ConversionError::Inconsistent { range: piece.gpa, source };
            }
        }
        piece.failed(to, source)
    }

    /// Sets an attribute after the first attempt ended with an error, if that is worth it.
    #[cold]
    fn set_rest(&self, range: GpaRange, state: PageState, error: Error) -> Result<(), Incomplete> {
        let (mut rest, mut attempts, mut source) = (range, 1, error);
        loop {
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
            match self.vm.set_attribute(rest, state) {
                Ok(()) => return Ok(()),
                Err(error) => source = error,
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
