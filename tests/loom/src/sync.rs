//! The product's primitives, modelled by loom, with orderings that can be weakened.
//!
//! Loom has no total order of sequentially consistent operations: it treats them as acquire and release, and models
//! that order for fences only. So an exchange that asks for it is made of an exchange and a fence here. That is what it
//! is on x86-64, where a locked instruction is a full barrier; in the language's model the product's argument needs
//! less (see the page of `vmm::memory::guarded`).

use std::cell::Cell;
use std::time::Duration;

pub(super) use loom::sync::atomic::AtomicUsize;
pub(super) use loom::sync::{Condvar, Mutex, MutexGuard, RwLock};
pub(super) use std::sync::Arc;

use loom::sync::atomic::Ordering;

/// Fewer slots than the product has, so that there is less to try.
pub(super) const SLOTS: usize = 2;

/// What is weaker than in the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weakening {
    /// Nothing: the product's own orderings.
    Nothing,
    /// Publishing a guard acquires and releases, but is not sequentially consistent: it may be seen later than the test of
    /// the refused bits.
    Publish,
    /// Testing the refused bits acquires nothing.
    Test,
    /// The refused bits are not tested at all.
    NoTest,
    /// Ending a guard releases nothing.
    Clear,
    /// Looking for guards acquires nothing.
    Scan,
    /// Letting devices in releases nothing.
    Allow,
    /// There is no fence between refusing devices and looking for their guards.
    NoRevocationFence,
    /// The fence between them acquires and releases, but is not sequentially consistent.
    RevocationFence,
    /// Changing the record of conversions in flight releases nothing.
    Record,
    /// Reading the record of conversions in flight acquires nothing.
    Read,
}

thread_local! {
    static WEAKENING: Cell<Weakening> = const { Cell::new(Weakening::Nothing) };
}

fn weakened(what: Weakening) -> bool {
    WEAKENING.get() == what
}

/// Runs `check` with something weakened. Loom's threads all run on the thread that calls it.
pub fn with<T>(weakening: Weakening, check: impl FnOnce() -> T) -> T {
    struct Restore(Weakening);
    impl Drop for Restore {
        fn drop(&mut self) {
            WEAKENING.set(self.0);
        }
    }
    let _restore = Restore(WEAKENING.replace(weakening));
    check()
}

/// The orderings of guarded access.
pub(super) mod order {
    use super::{Ordering, Weakening, weakened};

    fn unless(weakening: Weakening, ordering: Ordering) -> Ordering {
        if weakened(weakening) { Ordering::Relaxed } else { ordering }
    }

    pub fn publish() -> Ordering {
        if weakened(Weakening::Publish) { Ordering::AcqRel } else { Ordering::SeqCst }
    }

    pub fn test() -> Ordering {
        unless(Weakening::Test, Ordering::SeqCst)
    }

    pub fn clear() -> Ordering {
        unless(Weakening::Clear, Ordering::Release)
    }

    pub fn scan() -> Ordering {
        unless(Weakening::Scan, Ordering::Acquire)
    }

    pub fn allow() -> Ordering {
        unless(Weakening::Allow, Ordering::Release)
    }

    pub fn record() -> Ordering {
        unless(Weakening::Record, Ordering::Release)
    }

    pub fn read() -> Ordering {
        unless(Weakening::Read, Ordering::Acquire)
    }
}

/// An atomic number.
#[derive(Debug)]
pub(super) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(super) fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    pub(super) fn load(&self, ordering: Ordering) -> u64 {
        match ordering {
            // Only the test of the refused bits asks for this.
            Ordering::SeqCst if weakened(Weakening::NoTest) => 0,
            Ordering::SeqCst => self.0.load(Ordering::Acquire),
            weaker => self.0.load(weaker),
        }
    }

    pub(super) fn store(&self, value: u64, ordering: Ordering) {
        self.0.store(value, ordering);
    }

    pub(super) fn swap(&self, value: u64, ordering: Ordering) -> u64 {
        let before = self.0.swap(value, if ordering == Ordering::SeqCst { Ordering::AcqRel } else { ordering });
        if ordering == Ordering::SeqCst {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
        before
    }
}

/// Between setting the refused bits and looking for guards.
pub(super) fn revocation_fence() {
    if !weakened(Weakening::NoRevocationFence) {
        let weaker = weakened(Weakening::RevocationFence);
        loom::sync::atomic::fence(if weaker { Ordering::AcqRel } else { Ordering::SeqCst });
    }
}

/// Waits on a condition; time does not pass here.
pub(super) fn wait_for<'a, T>(condition: &Condvar, held: MutexGuard<'a, T>, _timeout: Duration) -> MutexGuard<'a, T> {
    condition.wait(held).unwrap_or_else(|e| e.into_inner())
}

/// Waiting for a device: the others get on meanwhile.
pub(super) struct Wait;

impl Wait {
    pub(super) fn new() -> Self {
        Self
    }

    pub(super) fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    pub(super) fn pause(&mut self) {
        loom::thread::yield_now();
    }
}
