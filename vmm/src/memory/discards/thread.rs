//! The thread that discards what was queued, when nobody else is at work.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::state::State;

/// How long nobody else must have converted or discarded anything before the thread works.
pub const QUIET: Duration = Duration::from_millis(10);

/// How long a discard waits for a quiet moment; also the least time between two that are done without one.
const OVERDUE: Duration = Duration::from_secs(1);

/// How long the thread waits before it tries again what failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

impl State {
    /// The thread's life.
    pub(super) fn work(&self) {
        let mut owed = self.owed.lock();
        // Nothing is owed at the very start, however late this thread comes.
        let mut seen = (0, 0, 0);
        // When something was last done without a quiet moment.
        let mut forced: Option<Instant> = None;
        while !owed.closed {
            let Some(mut id) = owed.next_work(RETRY_INTERVAL) else {
                match owed.held_back() {
                    0 => self.work.wait(&mut owed),
                    _ => drop(self.work.wait_for(&mut owed, RETRY_INTERVAL)),
                }
                continue;
            };
            let now = (owed.next, owed.attempts, self.at_once.ended());
            if now != seen || self.busy.load(Ordering::Relaxed) != 0 {
                seen = now;
                let overdue =
                    owed.overdue_work(OVERDUE).filter(|_| forced.is_none_or(|last| last.elapsed() >= OVERDUE));
                let Some(overdue) = overdue else {
                    self.work.wait_for(&mut owed, QUIET);
                    continue;
                };
                forced = Some(Instant::now());
                id = overdue;
            }
            // What failed is recorded and reported there.
            owed = self.run(owed, id).unwrap_or_else(|_| self.owed.lock());
            // Its own doing is nobody else's.
            seen.1 += 1;
        }
    }
}
