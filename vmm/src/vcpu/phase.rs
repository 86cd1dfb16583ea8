//! What a processor is at, from the first instruction on.
//!
//! ```text
//! boot processor   Launching ──────────────────────► Running
//! all others       Parked ──► Leaving ─────────────► Running
//!                        └──► lost to INIT: it ends
//! ```
//!
//! With isolation `none`, all are `Running` from the start.

use std::time::{Duration, Instant};

/// How long a parked processor rests at a time: this part of the time that it has been parked, between these bounds. So a
/// guest waits for it by so much longer at most, and one that is never woken costs next to nothing.
const PART: u32 = 128;
const SHORTEST_NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// What a processor is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Launch code that has not said yet that it is done.
    Launching,
    /// It waits for the guest to wake it through the mailbox.
    Parked {
        /// Its first look into the mailbox.
        since: Option<Instant>,
    },
    /// It was woken, and may still run in the shared copy of low memory.
    Leaving,
    /// The guest's kernel has it.
    Running,
}

impl Phase {
    /// Parked, and not begun yet.
    pub(crate) fn parked() -> Self {
        Self::Parked { since: None }
    }

    /// A parked processor is about to look into its mailbox. Returns how long it rests before that.
    pub(crate) fn nap(&mut self) -> Duration {
        let Self::Parked { since } = self else { return Duration::ZERO };
        let now = Instant::now();
        let parked = now.saturating_duration_since(*since.get_or_insert(now));
        (parked / PART).clamp(SHORTEST_NAP, LONGEST_NAP)
    }
}
