//! Processors on their way from the parking place into the guest's kernel (`software` isolation).
//!
//! A processor that is woken copies private low memory to the shared alias, because the guest's first instructions run
//! there (arch's `launch/parking.rs`). The copy is discarded as soon as no processor is on its way any more. Whether one
//! has arrived shows in its registers, and those are looked at on each of its exits; as a kernel may have none for long,
//! the machine makes it leave the guest every [`LOOK_INTERVAL`] until then. One that is parked is looked at as well, now
//! and then: a kernel that knows no mailbox takes it away by INIT, and then it would run on in real mode without sense.
//!
//! Guarantee: low memory's shared alias holds nothing of the VMM's doing once every processor that was woken has arrived, or
//! soon after: what a guest's conversions or an error of the host's keep there is given back later.
//! A guest may write to it all the time; what it gains by never arriving is what it has anyway, 640 KiB of shared memory.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::memory::{GuestRam, OpenCopies};

/// How often a processor on its way is looked at, if it does not leave the guest by itself.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How often a parked processor is looked at.
const PARKED_INTERVAL: Duration = Duration::from_millis(500);

/// How often it is tried to give back what remains of a copy.
const REMAINS_INTERVAL: Duration = Duration::from_secs(1);

/// The processors that are parked or on their way.
pub(crate) struct Starts(Mutex<Places>);

struct Places {
    parked: Vec<u8>,
    on_their_way: Vec<u8>,
    /// What could not be given back of a copy that nobody needs.
    remains: OpenCopies,
}

impl Starts {
    /// These are parked.
    pub(crate) fn new(parked: Vec<u8>) -> Self {
        Self(Mutex::new(Places { parked, on_their_way: Vec::new(), remains: OpenCopies::default() }))
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing in here panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A processor is about to make its copy.
    pub(crate) fn begin(&self, id: u8) {
        let mut places = self.places();
        places.parked.retain(|other| *other != id);
        places.on_their_way.push(id);
    }

    /// A processor needs its copy no longer, or will never make one.
    pub(crate) fn end(&self, id: u8, ram: &GuestRam) {
        // Held while the copy goes, so that nobody makes a new one meanwhile.
        let mut places = self.places();
        places.parked.retain(|other| *other != id);
        places.on_their_way.retain(|other| *other != id);
        if places.on_their_way.is_empty() {
            places.remains = ram.discard_open_copies(ram.open_copies());
        }
    }

    /// Tries to give back what remains of a copy, unless a processor needs it again.
    pub(super) fn give_back_remains(&self, ram: &GuestRam) {
        let mut places = self.places();
        if places.on_their_way.is_empty() && !places.remains.is_empty() {
            places.remains = ram.try_discard_open_copies(&places.remains);
        }
    }

    /// Which processors are to be looked at, and after how long.
    pub(super) fn next_look(&self) -> (Vec<u8>, Option<Duration>) {
        let places = self.places();
        match (&places.parked[..], &places.on_their_way[..]) {
            ([], []) => (Vec::new(), (!places.remains.is_empty()).then_some(REMAINS_INTERVAL)),
            (parked, []) => (parked.to_vec(), Some(PARKED_INTERVAL)),
            (_, on_their_way) => (on_their_way.to_vec(), Some(LOOK_INTERVAL)),
        }
    }
}
