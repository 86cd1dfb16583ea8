//! To private: nobody but the guest is at the pages before they become private.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arch::x86_64::memory_layout::RamRange;
use hypervisor::PageState::{Private, Shared};
use parking_lot::MutexGuard;

use super::{ConversionError, ConversionListener, Piece};
use crate::memory::GuestRam;
use crate::memory::discards::Debt;
use crate::memory::event::MemoryEvent;
use crate::memory::guarded::{ChangeError, PageRange, Quiesced, Revoked, Waiting};
use crate::memory::ledger::Ledger;
use crate::memory::statistics::Stopwatch;

/// How often a wait is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Whether a pause of the machine cuts a wait short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// The conversion is undone, and made anew later.
    UntilPause,
    /// There is no way back.
    Endless,
}

/// No device and no listener is at the pages, and none gets at them.
#[must_use]
struct Unmapped(Quiesced);

/// The same, and KVM's attribute says private.
#[must_use]
struct Flipped(Unmapped);

/// Takes the pages away from all who map them: in reverse order, the last first.
fn unmap(quiesced: Quiesced, piece: &Piece<'_>, listeners: &[Arc<dyn ConversionListener>]) -> Unmapped {
    piece.unmap(listeners);
    Unmapped(quiesced)
}

impl GuestRam {
    /// Converts the first piece of shared pages among these. `None` if there is none.
    #[inline(always)]
    pub(super) fn next_to_private<'l>(
        &'l self,
        ledger: MutexGuard<'l, Ledger>,
        ram: &RamRange,
        pages: PageRange,
        watch: &mut Stopwatch,
    ) -> Result<Option<PageRange>, ConversionError> {
        let Some((piece, revoked, ledger)) = self.revoke_next(ledger, ram, pages, watch)? else { return Ok(None) };
        let (unmapped, mut ledger) = match self.at_rest(&ledger, revoked) {
            Ok(unmapped) => (unmapped, ledger),
            Err(revoked) => {
                // The listeners of this moment: one that is added later never gets pages that are on their way to private.
                let listeners = ledger.listeners.clone();
                drop(ledger);
                watch.waits();
                let quiesced = self.quiesce_piece(&piece, revoked, Patience::UntilPause)?;
                (unmap(quiesced, &piece, &listeners), self.ledger())
            }
        };
        let result = match self.flip_unmapped(&mut ledger, &piece, unmapped) {
            Ok(flipped) => Ok(self.publish_private(&mut ledger, &piece, flipped)),
            Err(failed) => {
                let (unmapped, error) = *failed;
                // If the machine stops, nobody gets at the pages until then.
                if !error.is_fatal() {
                    give_back(&mut ledger, &piece, unmapped);
                }
                Err(error)
            }
        };
        drop(ledger);
        self.conversion_ended.notify_all();
        let debt = result?;
        if piece.ram.shared_stays_open() {
            // What the guest writes there from now on must not be discarded.
            self.discards.settle_now(debt);
        } else {
            self.discards.settle(debt);
        }
        Ok(Some(piece.pages))
    }

    /// Where nobody is at the pages and nobody maps them, there is nothing to let go of the ledger for.
    #[inline(always)]
    fn at_rest(&self, ledger: &Ledger, revoked: Revoked) -> Result<Unmapped, Revoked> {
        if !ledger.listeners.is_empty() {
            return Err(revoked);
        }
        revoked.try_quiesce(&*self.quiesce, self.devices.guards()).map(Unmapped)
    }

    /// Revokes the first piece of shared pages among these.
    #[inline(always)]
    fn revoke_next<'a, 'l>(
        &'l self,
        mut ledger: MutexGuard<'l, Ledger>,
        ram: &'a RamRange,
        pages: PageRange,
        watch: &mut Stopwatch,
    ) -> Result<Option<(Piece<'a>, Revoked, MutexGuard<'l, Ledger>)>, ConversionError> {
        loop {
            let Some(run) = Self::first_run(&ledger, pages, Shared) else { return Ok(None) };
            let failed = |source| ConversionError::Failed { range: ram.gpa, to: Private, source };
            let piece = Piece::first_of(ram, run).map_err(|source| failed(source.into()))?;
            ledger.lent.check(piece.gpa)?;
            if self.discards.is_owed(piece.pages) {
                drop(ledger);
                self.settle_for(&piece, watch)?;
                ledger = self.running_ledger()?;
                continue;
            }
            match ledger.writer.revoke(piece.pages) {
                Ok(revoked) => return Ok(Some((piece, revoked, ledger))),
                Err(ChangeError::InFlight { .. } | ChangeError::Full { .. }) => {
                    self.check_waiting()?;
                    watch.waits();
                    ledger = self.wait_for_others(ledger)?
                }
                Err(source) => return Err(ConversionError::Map { range: piece.gpa, source }),
            }
        }
    }

    fn quiesce_piece(
        &self,
        piece: &Piece<'_>,
        revoked: Revoked,
        patience: Patience,
    ) -> Result<Quiesced, ConversionError> {
        let mut next_report = REPORT_INTERVAL;
        let mut gave_up = ConversionError::Stopped;
        let look = &mut |waiting: &Waiting| {
            if waiting.waited >= next_report {
                next_report = waiting.waited + REPORT_INTERVAL;
                self.report_wait(piece, waiting);
            }
            let may_wait = match patience {
                Patience::UntilPause => self.check_waiting(),
                Patience::Endless if self.is_ending() => Err(ConversionError::Stopped),
                Patience::Endless => Ok(()),
            };
            match may_wait {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    gave_up = error;
                    ControlFlow::Break(())
                }
            }
        };
        revoked.quiesce(&*self.quiesce, self.devices.guards(), look).map_err(|revoked| {
            self.ledger().writer.restore(revoked);
            self.conversion_ended.notify_all();
            gave_up
        })
    }

    /// A conversion waits for a device for as long as it takes, unless the machine is ending or pauses.
    fn report_wait(&self, piece: &Piece<'_>, waiting: &Waiting) {
        self.counters.count_wait();
        let Waiting { waited, owner, .. } = waiting;
        tracing::warn!("the conversion of {} to private has been waiting for {owner} for {waited:.1?}", piece.gpa);
        (self.observer)(&MemoryEvent::Waiting { range: piece.gpa, waited: *waited, owner });
    }

    #[inline(always)]
    fn flip_unmapped(
        &self,
        ledger: &mut Ledger,
        piece: &Piece<'_>,
        unmapped: Unmapped,
    ) -> Result<Flipped, Box<(Unmapped, ConversionError)>> {
        match self.flip(ledger, piece, Private) {
            Ok(()) => Ok(Flipped(unmapped)),
            Err(error) => Err(Box::new((unmapped, error))),
        }
    }

    /// From here on the pages are private. What they leave is owed from the same moment on.
    #[inline(always)]
    fn publish_private(&self, ledger: &mut Ledger, piece: &Piece<'_>, flipped: Flipped) -> Debt {
        let Flipped(Unmapped(quiesced)) = flipped;
        ledger.writer.commit(quiesced);
        self.discards.owe_for_good(self.whole_huge_pages(ledger, piece), Shared)
    }

    /// These pages, with the rest of the huge pages that they are part of where all of that is private, too: a huge page goes
    /// back only whole.
    fn whole_huge_pages(&self, ledger: &Ledger, piece: &Piece<'_>) -> PageRange {
        let (pages, size) = (piece.pages, self.huge_page_pages);
        if size <= 1 {
            return pages;
        }
        // The huge page that holds a page, if all of it is private by now. What reaches into another range of RAM may be in
        // use there whatever its state, as low memory is.
        let whole = |page: u64| {
            let first = page / size * size;
            let huge = PageRange::new(first, first + size)?;
            let own = PageRange::touched(piece.ram.offset, piece.ram.gpa.len())?;
            if huge.intersection(own) != Some(huge) {
                return None;
            }
            ledger.writer.runs(huge).all(|run| run.state == Private).then_some(huge)
        };
        let first = whole(pages.first()).map_or(pages.first(), PageRange::first);
        let end = whole(pages.end() - 1).map_or(pages.end(), PageRange::end);
        PageRange::new(first, end).unwrap_or(pages)
    }

    /// Undoes a conversion to shared that a listener refused: the pages become private again, with what they held.
    /// `debt` is what the conversion owes, and `mapped` are those who may have the pages already. Where that can't be done,
    /// the pages stay shared, and the listeners go without them.
    ///
    /// # Errors
    /// Only what the machine can't survive.
    pub(super) fn take_back(
        &self,
        piece: &Piece<'_>,
        debt: Debt,
        mapped: &[Arc<dyn ConversionListener>],
    ) -> Result<(), ConversionError> {
        // As long as the debt is held, nobody else converts these pages.
        let revoked =
            self.revoke_again(piece).and_then(|revoked| self.quiesce_piece(piece, revoked, Patience::Endless));
        let quiesced = match revoked {
            Ok(quiesced) => quiesced,
            Err(error) => {
                piece.unmap(mapped);
                self.stays_shared(piece, &error);
                self.discards.settle(debt);
                return Ok(());
            }
        };
        let unmapped = unmap(quiesced, piece, mapped);
        let mut ledger = self.ledger();
        // Whoever was added since then has the pages as well, and nobody maps them any more once the lock is held.
        piece.unmap(&ledger.listeners);
        let settled = match self.flip_unmapped(&mut ledger, piece, unmapped) {
            Ok(flipped) => {
                self.discards.forgive(debt);
                self.publish_private(&mut ledger, piece, flipped)
            }
            Err(failed) => {
                let (Unmapped(quiesced), error) = *failed;
                if error.is_fatal() {
                    // The debt stays as it is: nobody gets at the pages, and nothing of them is given away.
                    return Err(error);
                }
                self.stays_shared(piece, &error);
                ledger.writer.restore(quiesced);
                debt
            }
        };
        drop(ledger);
        self.conversion_ended.notify_all();
        self.discards.settle(settled);
        Ok(())
    }

    fn stays_shared(&self, piece: &Piece<'_>, why: &ConversionError) {
        tracing::warn!("{} stays shared, unmapped by listeners: {}", piece.gpa, crate::error::chain(why));
    }

    fn revoke_again(&self, piece: &Piece<'_>) -> Result<Revoked, ConversionError> {
        let mut ledger = self.running_ledger()?;
        loop {
            // KVM may have been given the pages meanwhile: they were shared.
            ledger.lent.check(piece.gpa)?;
            match ledger.writer.revoke(piece.pages) {
                Ok(revoked) => return Ok(revoked),
                Err(ChangeError::Full { .. } | ChangeError::InFlight { .. }) => {
                    ledger = self.wait_for_others(ledger)?
                }
                Err(source) => return Err(ConversionError::Map { range: piece.gpa, source }),
            }
        }
    }
}

/// Undoes a conversion to private whose attribute could not be set: the listeners of now get the pages back, then devices.
fn give_back(ledger: &mut Ledger, piece: &Piece<'_>, unmapped: Unmapped) {
    let Unmapped(quiesced) = unmapped;
    for listener in ledger.listeners.iter().filter(|_| piece.ram.devices) {
        // It had them a moment ago. Without them it does less than it may, never more.
        if let Err(error) = listener.map(piece.gpa) {
            tracing::warn!("{} can't map {} again: {error}", listener.name(), piece.gpa);
        }
    }
    ledger.writer.restore(quiesced);
}
