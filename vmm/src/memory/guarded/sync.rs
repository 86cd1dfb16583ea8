//! The primitives and the memory orderings that guarded access stands on, named by what each is for.
//!
//! Everything here is the standard library's. It is gathered in one place because the same sources are also compiled
//! against loom's model of memory (`tests/loom`), which puts its own version of this file in place of this one, and
//! there weakens each ordering in turn to show that it is needed. The argument for the whole stands in the page of
//! [`super`].

use std::time::{Duration, Instant};

pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize};
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};

/// Slots in the cache line of one handle.
pub(super) const SLOTS: usize = 8;

/// The orderings of guarded access.
pub(super) mod order {
    use std::sync::atomic::Ordering::{self, Acquire, Release, SeqCst};

    /// A device publishes the pages it is about to touch. Sequentially consistent: no load of the refused bits may be
    /// done before the slot can be seen.
    #[inline(always)]
    pub const fn publish() -> Ordering {
        SeqCst
    }

    /// A device tests the refused bits. Sequentially consistent, after [`publish`]; acquires what was in the page when
    /// it became shared.
    #[inline(always)]
    pub const fn test() -> Ordering {
        SeqCst
    }

    /// A device ends a guard: all it did to the pages is done.
    #[inline(always)]
    pub const fn clear() -> Ordering {
        Release
    }

    /// The writer looks whether a guard has ended, and acquires what was done under it.
    #[inline(always)]
    pub const fn scan() -> Ordering {
        Acquire
    }

    /// The writer lets devices at pages, which are ready for them.
    #[inline(always)]
    pub const fn allow() -> Ordering {
        Release
    }

    /// The writer changes the record of conversions in flight, or the refused bits that go with it.
    #[inline(always)]
    pub const fn record() -> Ordering {
        Release
    }

    /// Anybody reads the record of conversions in flight, or the refused bits together with it.
    #[inline(always)]
    pub const fn read() -> Ordering {
        Acquire
    }
}

/// Between setting the refused bits and looking for guards: no guard may be looked for before the bits can be seen.
#[inline(always)]
pub(super) fn revocation_fence() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Waits on a condition for at most `timeout`.
pub(super) fn wait_for<'a, T>(condition: &Condvar, held: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
    condition.wait_timeout(held, timeout).unwrap_or_else(|e| e.into_inner()).0
}

/// Waiting for a device: the first looks are a few nanoseconds apart, the last ones a millisecond.
pub(super) struct Wait {
    since: Instant,
    looks: u32,
}

impl Wait {
    const SPINS: u32 = 200;
    const YIELDS: u32 = 50;
    const LONGEST_SLEEP: Duration = Duration::from_millis(1);

    pub(super) fn new() -> Self {
        Self { since: Instant::now(), looks: 0 }
    }

    /// How long it has been.
    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Lets time pass until the next look.
    pub(super) fn pause(&mut self) {
        self.looks = self.looks.saturating_add(1);
        if self.looks <= Self::SPINS {
            std::hint::spin_loop();
        } else if self.looks <= Self::SPINS + Self::YIELDS {
            std::thread::yield_now();
        } else {
            let sleeps = (self.looks - Self::SPINS - Self::YIELDS).min(16);
            std::thread::sleep((Duration::from_micros(20) * sleeps * sleeps).min(Self::LONGEST_SLEEP));
        }
    }
}
