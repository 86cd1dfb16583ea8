//! To shared: nobody but the guest gets at the pages before they are shared.

use std::sync::Arc;

use arch::x86_64::memory_layout::RamRange;
use hypervisor::PageState::{Private, Shared};
use parking_lot::MutexGuard;

use super::{ConversionError, ConversionListener, Piece};
use crate::memory::GuestRam;
use crate::memory::discards::Debt;
use crate::memory::guarded::PageRange;
use crate::memory::ledger::Ledger;
use crate::memory::statistics::Stopwatch;

/// Pages that are shared, which not all listeners know yet.
#[must_use]
struct Published {
    /// What the pages left. While it is owed, nobody converts them back.
    debt: Debt,
    /// Who is to map them, if anybody is.
    listeners: Option<Arc<[Arc<dyn ConversionListener>]>>,
}

impl GuestRam {
    /// Converts the first piece of private pages among these. `None` if there is none.
    pub(super) fn next_to_shared<'l>(
        &'l self,
        ledger: MutexGuard<'l, Ledger>,
        ram: &RamRange,
        pages: PageRange,
        watch: &mut Stopwatch,
    ) -> Result<Option<PageRange>, ConversionError> {
        let Some((piece, published)) = self.publish_next(ledger, ram, pages, watch)? else { return Ok(None) };
        let debt = self.map(&piece, published)?;
        self.discards.settle(debt);
        Ok(Some(piece.pages))
    }

    /// Sets the attribute of the first piece of private pages among these, and publishes it.
    fn publish_next<'a, 'l>(
        &'l self,
        mut ledger: MutexGuard<'l, Ledger>,
        ram: &'a RamRange,
        pages: PageRange,
        watch: &mut Stopwatch,
    ) -> Result<Option<(Piece<'a>, Published)>, ConversionError> {
        loop {
            let Some(run) = Self::first_run(&ledger, pages, Private) else { return Ok(None) };
            let failed = |source| ConversionError::Failed { range: ram.gpa, to: Shared, source };
            let piece = Piece::first_of(ram, run).map_err(|source| failed(source.into()))?;
            if self.discards.is_owed(piece.pages) {
                drop(ledger);
                self.settle_for(&piece, watch)?;
                ledger = self.running_ledger()?;
                continue;
            }
            self.flip(&mut ledger, &piece, Shared)?;
            let listeners = (!ledger.listeners.is_empty()).then(|| ledger.listeners.clone());
            let debt = match listeners {
                // Where nobody is asked, nobody refuses.
                None => self.discards.owe_for_good(piece.pages, Private),
                Some(_) => self.discards.owe(piece.pages, Private),
            };
            if let Err(source) = ledger.writer.share(piece.pages) {
                self.discards.forgive(debt);
                self.flip(&mut ledger, &piece, Private)?;
                return Err(ConversionError::Map { range: piece.gpa, source });
            }
            return Ok(Some((piece, Published { debt, listeners })));
        }
    }

    /// Lets each listener map the pages, or takes them back from all.
    fn map(&self, piece: &Piece<'_>, published: Published) -> Result<Debt, ConversionError> {
        let Published { debt, listeners: Some(listeners) } = published else { return Ok(published.debt) };
        for listener in listeners.iter().filter(|_| piece.ram.devices) {
            if let Err(source) = listener.map(piece.gpa) {
                // Unmapping what is not mapped does nothing, so all of them are told.
                self.take_back(piece, debt, &listeners)?;
                let listener = listener.name().to_owned();
                return Err(ConversionError::Unmappable { range: piece.gpa, listener, source });
            }
        }
        // Who was removed meanwhile must not keep them: it would not be told when they become private, which they can't
        // before the debt is settled.
        let current = self.ledger().listeners.clone();
        for gone in listeners.iter().filter(|listener| !current.iter().any(|other| Arc::ptr_eq(other, listener))) {
            gone.unmap(piece.gpa);
        }
        Ok(debt)
    }
}
