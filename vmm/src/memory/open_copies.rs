//! Shared memory that stays open to the guest whatever the state of its pages: low memory, where processors start.
//!
//! A processor that starts leaves a copy of private low memory there. Nobody needs it once the processor is up.

use arch::x86_64::memory_layout::RamRange;
use hypervisor::PageState;

use super::GuestRam;
use super::guarded::PageRange;

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
        // Owed under the lock that publishes states, so that nobody shares the pages before they are given back.
        let debts: Vec<_> = {
            let ledger = self.ledger();
            let private = ledger.writer.runs(pages).filter(|run| run.state == PageState::Private);
            // What is owed for already goes back by itself.
            let copies = private.filter(|run| !self.discards.is_owed(run.pages));
            copies.map(|run| self.discards.owe(run.pages, PageState::Shared)).collect()
        };
        debts.into_iter().for_each(|debt| self.discards.settle_now(debt));
    }
}
