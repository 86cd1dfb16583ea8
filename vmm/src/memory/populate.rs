//! Populating private memory that the guest is about to touch, while the guest runs.
//!
//! Pages that are shared are left alone. Those that are private are *kept* so, a few at a time: whoever wants to convert them
//! waits until they are populated, and its discard then finds what was. So nothing is populated that a conversion has
//! discarded, and the guest's memory is held once.
//!
//! Cost: for each [`STEP`] one turn at the lock of conversions. A conversion of a piece with these pages waits until they are
//! populated; as the next are kept at once, that may be until all of the piece is.

use std::ops::ControlFlow;

use arch::x86_64::memory_layout::RamRange;
use hypervisor::{GpaRange, PageState};

use super::GuestRam;
use super::discards::Keep;
use super::guarded::PageRange;

/// The most pages that are kept at a time: 2 ms on the nested host, some ten microseconds on real ones. Taking away a
/// region waits for as long.
const STEP: u64 = 64;

impl GuestRam {
    /// Has `populate` populate what of a range is private RAM, by the addresses at which the guest has it as such, until
    /// `go_on` says no or conversions are interrupted or ended. The rest is the guest's own business.
    ///
    /// # Errors
    /// That of `populate`.
    pub(crate) fn populate(
        &self,
        range: GpaRange,
        go_on: impl Fn() -> bool,
        mut populate: impl FnMut(GpaRange) -> hypervisor::Result<()>,
    ) -> hypervisor::Result<ControlFlow<()>> {
        for (ram, part) in self.layout.split(range) {
            // With `none` there is no private memory.
            let Some(alias) = ram.aliases.iter().find(|alias| alias.private) else { continue };
            let mut rest = PageRange::touched(ram.backing_offset(part.start()), part.len());
            while let Some(pages) = rest {
                if !go_on() || self.check_waiting().is_err() {
                    return Ok(ControlFlow::Break(()));
                }
                let Some((kept, _keep)) = self.keep_private(pages) else { break };
                populate(place(ram, kept)?.offset_by(alias.offset)?)?;
                rest = PageRange::new(kept.end(), pages.end());
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Keeps the first private pages among these as they are.
    fn keep_private(&self, pages: PageRange) -> Option<(PageRange, Keep<'_>)> {
        // Under the lock that publishes states, so that no conversion overlooks it.
        let ledger = self.ledger();
        let run = Self::first_run(&ledger, pages, PageState::Private)?;
        let run = PageRange::new(run.first(), run.end().min(run.first() + STEP))?;
        Some((run, self.discards.keep(run)))
    }
}

/// Where pages of a range of RAM are in it.
fn place(ram: &RamRange, pages: PageRange) -> Result<GpaRange, hypervisor::RangeError> {
    GpaRange::new(ram.gpa.start() + (pages.offset() - ram.offset), pages.bytes())
}

#[cfg(test)]
mod tests;
