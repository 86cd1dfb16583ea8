//! Processors on their way from the parking place into the guest's kernel (`software` isolation).
//!
//! A processor that is woken copies private low memory to the shared alias, because the guest's first instructions run
//! there (arch's `launch/parking.rs`). The copy is discarded as soon as no processor is on its way any more. Whether one
//! has arrived shows in its registers, and those are looked at on each of its exits; as a kernel may have none for long,
//! the machine makes it leave the guest every [`LOOK_INTERVAL`] until then.
//!
//! Guarantee: low memory's shared alias holds nothing of the VMM's doing once every processor that was woken has arrived.
//! A guest may write to it all the time; what it gains by never arriving is what it has anyway, 640 KiB of shared memory.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::memory::GuestRam;

/// How often a processor on its way is looked at, if it does not leave the guest by itself.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The processors on their way.
#[derive(Default)]
pub(crate) struct Starts(Mutex<Vec<u8>>);

impl Starts {
    fn on_their_way(&self) -> MutexGuard<'_, Vec<u8>> {
        // Nothing in here panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A processor is about to make its copy.
    pub(crate) fn begin(&self, id: u8) {
        self.on_their_way().push(id);
    }

    /// A processor needs its copy no longer, or never will.
    pub(crate) fn end(&self, id: u8, ram: &GuestRam) {
        // Held while the copy goes, so that nobody makes a new one meanwhile.
        let mut on_their_way = self.on_their_way();
        on_their_way.retain(|other| *other != id);
        if on_their_way.is_empty() {
            ram.discard_open_copies();
        }
    }

    /// Those that are on their way now.
    pub(super) fn list(&self) -> Vec<u8> {
        self.on_their_way().clone()
    }
}
