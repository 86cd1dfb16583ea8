//! Shared memory that stays open to the guest whatever the state of its pages: low memory, where processors start.
//!
//! A processor that starts leaves a copy of private low memory there. Nobody needs it once the processor is up.

use arch::x86_64::memory_layout::RamRange;
use hypervisor::PageState;

use super::GuestRam;
use super::guarded::PageRange;

/// How often what is owed for the pages already is settled first. Only a guest that converts them all the while makes it
/// come again, and the copy that it so keeps is its own.
const ATTEMPTS: u32 = 16;

impl GuestRam {
    /// Gives back the open shared memory of pages that are private.
    ///
    /// A discard that fails is tried again by whoever gives back memory next, like any other.
    pub(crate) fn discard_open_copies(&self) {
        for ram in self.layout.ranges().iter().filter(|ram| ram.shared_stays_open()) {
            self.discard_open_copy(ram);
        }
    }

    fn discard_open_copy(&self, ram: &RamRange) {
        let Some(pages) = PageRange::touched(ram.offset, ram.gpa.len()) else { return };
        let mut debts = Vec::new();
        for attempt in 1..=ATTEMPTS {
            // Owed under the lock that publishes states, so that nobody shares the pages before they are given back.
            let ledger = self.ledger();
            let private = ledger.writer.runs(pages).filter(|run| run.state == PageState::Private).map(|run| run.pages);
            let (owed, free): (Vec<_>, Vec<_>) = private.partition(|run| self.discards.is_owed(*run));
            if owed.is_empty() || attempt == ATTEMPTS {
                debts.extend(free.into_iter().map(|run| self.discards.owe(run, PageState::Shared)));
                break;
            }
            drop(ledger);
            // A failure is told where it happens.
            let _ = self.discards.settle_all_in(pages, || self.is_ending());
        }
        debts.into_iter().for_each(|debt| self.discards.settle_now(debt));
    }
}
