//! Policy: what each kind of conversion may do, and how often.
//!
//! A refused conversion changes nothing. A limited one waits for its turn: the thread that asks sleeps, so a guest that
//! converts too often slows down itself. What changes nothing (the pages have the state already) is no conversion here.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use arch::x86_64::private_faults::ConversionKind;
use parking_lot::Mutex;

/// What one kind of conversion may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// Go on.
    #[default]
    Allow,
    /// Nothing.
    Refuse,
    /// Go on so many times a second; what exceeds that waits.
    Limit {
        /// Requests in a second.
        per_second: NonZeroU32,
    },
}

/// What each kind may do. The default allows everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// What the guest announces.
    pub explicit: Rule,
    /// What an access asks for.
    pub implicit: Rule,
    /// What the operator asks for.
    pub host: Rule,
}

impl Policy {
    /// The rule for a kind.
    pub fn rule(&self, kind: ConversionKind) -> Rule {
        match kind {
            ConversionKind::Explicit => self.explicit,
            ConversionKind::Implicit => self.implicit,
            ConversionKind::Host => self.host,
        }
    }
}

/// When the next conversion of each kind may go on.
#[derive(Debug, Default)]
pub(in crate::memory) struct Turns(Mutex<[Option<Instant>; 3]>);

impl Turns {
    /// Takes the next turn of a kind, and tells how long it is until then.
    pub(in crate::memory) fn take(&self, kind: ConversionKind, per_second: NonZeroU32, now: Instant) -> Duration {
        let mut turns = self.0.lock();
        let turn = &mut turns[kind as usize];
        // Time that nobody used is not saved up.
        let mine = turn.map_or(now, |next| next.max(now));
        *turn = Some(mine + Duration::from_secs(1) / per_second.get());
        mine - now
    }

    /// Forgets the turns of kinds whose rules differ: those who had to wait longer no longer hold up others.
    pub(in crate::memory) fn follow(&self, before: &Policy, after: &Policy) {
        let mut turns = self.0.lock();
        for kind in [ConversionKind::Explicit, ConversionKind::Implicit, ConversionKind::Host] {
            if before.rule(kind) != after.rule(kind) {
                turns[kind as usize] = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_evenly_spaced_and_each_kind_has_its_own() {
        let (turns, now) = (Turns::default(), Instant::now());
        let ten = NonZeroU32::new(10).unwrap();
        let wait = |kind, at: u64| turns.take(kind, ten, now + Duration::from_millis(at)).as_millis();
        assert_eq!(wait(ConversionKind::Explicit, 0), 0);
        assert_eq!(wait(ConversionKind::Explicit, 0), 100);
        assert_eq!(wait(ConversionKind::Explicit, 50), 150);
        assert_eq!(wait(ConversionKind::Implicit, 50), 0);
        // After a pause there is one turn, not many.
        assert_eq!(wait(ConversionKind::Explicit, 5000), 0);
        assert_eq!(wait(ConversionKind::Explicit, 5000), 100);
    }
}
