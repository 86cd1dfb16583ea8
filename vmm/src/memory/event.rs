//! What happens to guest memory that somebody may want to know of.

use std::time::Duration;

use hypervisor::{GpaRange, PageState};

use super::guarded::RefusedAccess;

/// Something that happened.
#[derive(Debug)]
pub enum MemoryEvent<'a> {
    /// A conversion to private has been waiting for a device for another second.
    Waiting {
        /// The pages.
        range: GpaRange,
        /// How long.
        waited: Duration,
        /// Whose guard it waits for.
        owner: &'a str,
    },
    /// A device was refused an access.
    AccessRefused(&'a RefusedAccess),
    /// The host did not take back memory that pages have left. It is tried again.
    DiscardFailed {
        /// The first byte, as an offset into the backing.
        offset: u64,
        /// Size in bytes.
        size: u64,
        /// The side.
        side: PageState,
        /// Why.
        source: &'a hypervisor::Error,
    },
}

/// Told of events, on the thread that they happen on. It must not call into guest memory.
pub type MemoryObserver = dyn Fn(&MemoryEvent<'_>) + Send + Sync;
