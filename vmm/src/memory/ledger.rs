//! The ledger: everything that changes together with KVM's attributes, under one lock.
//!
//! KVM sets attributes one call at a time, so one lock for setting them and publishing the new state costs nothing more.
//! Nobody waits for a device, or discards, while holding it. A kernel that finds a page pinned for a moment is asked again for
//! up to 16 ms.

use std::sync::Arc;
use std::time::Duration;

use hypervisor::PageState;
use parking_lot::MutexGuard;

use super::GuestRam;
use super::conversion::{ConversionError, ConversionListener};
use super::guarded::{PageRange, Writer};
use super::lent::LentMemory;

/// How long a thread waits for others at a time, before it looks whether the machine is ending.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is changed under the lock.
pub(super) struct Ledger {
    /// The right to change the attribute map.
    pub(super) writer: Writer,
    /// Who else maps shared memory. Cloned, the list is that of this moment.
    pub(super) listeners: Arc<[Arc<dyn ConversionListener>]>,
    /// Pages that KVM writes to.
    pub(super) lent: LentMemory,
    /// Set when an undo failed: nothing may be converted any more.
    pub(super) inconsistent: bool,
}

impl Ledger {
    /// Whether all of these pages are shared, and stay so as long as the ledger is held.
    pub(super) fn is_firmly_shared(&self, pages: PageRange) -> bool {
        self.writer.runs(pages).all(|run| run.state == PageState::Shared && !run.converting)
    }
}

impl GuestRam {
    /// The ledger.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// The ledger, as long as conversions may go on.
    pub(super) fn running_ledger(&self) -> Result<MutexGuard<'_, Ledger>, ConversionError> {
        self.check_running(self.ledger())
    }

    /// Waits until another conversion ends, or for a moment.
    pub(super) fn wait_for_others<'a>(
        &self,
        mut ledger: MutexGuard<'a, Ledger>,
    ) -> Result<MutexGuard<'a, Ledger>, ConversionError> {
        self.conversion_ended.wait_for(&mut ledger, PATIENCE);
        self.check_running(ledger)
    }

    fn check_running<'a>(&self, ledger: MutexGuard<'a, Ledger>) -> Result<MutexGuard<'a, Ledger>, ConversionError> {
        if ledger.inconsistent || self.is_ending() { Err(ConversionError::Stopped) } else { Ok(ledger) }
    }
}
