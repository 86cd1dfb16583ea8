//! Policy: what each kind of conversion may do, and how often.
//!
//! A refused conversion changes nothing. A limited one waits for its turn: the thread that asks sleeps, so a guest that
//! converts too often slows down itself. What changes nothing (the pages have the state already) is no conversion here.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
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

impl Rule {
    /// The rule in one word: zero for all, so many a second, or none.
    fn to_word(self) -> u64 {
        match self {
            Self::Allow => 0,
            Self::Refuse => u64::MAX,
            Self::Limit { per_second } => u64::from(per_second.get()),
        }
    }

    /// The rule that [`Rule::to_word`] made this word of.
    #[inline]
    fn from_word(word: u64) -> Self {
        match u32::try_from(word) {
            Err(_) => Self::Refuse,
            Ok(limit) => NonZeroU32::new(limit).map_or(Self::Allow, |per_second| Self::Limit { per_second }),
        }
    }
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

/// All kinds.
const KINDS: [ConversionKind; 3] = [ConversionKind::Explicit, ConversionKind::Implicit, ConversionKind::Host];

/// The policy of now, and when the next conversion of each kind may go on. Reading a rule takes no lock.
#[derive(Debug)]
pub(in crate::memory) struct Turns {
    /// By kind, as [`Rule::to_word`] writes them.
    rules: [AtomicU64; KINDS.len()],
    next: Mutex<[Option<Instant>; KINDS.len()]>,
}

impl Turns {
    /// With this policy.
    pub(in crate::memory) fn new(policy: &Policy) -> Self {
        let rules = KINDS.map(|kind| AtomicU64::new(policy.rule(kind).to_word()));
        Self { rules, next: Mutex::default() }
    }

    /// The rule for a kind.
    #[inline]
    pub(in crate::memory) fn rule(&self, kind: ConversionKind) -> Rule {
        Rule::from_word(self.rules[kind as usize].load(Ordering::Acquire))
    }

    /// All rules, of one moment.
    pub(in crate::memory) fn policy(&self) -> Policy {
        let _unchanging = self.next.lock();
        let [explicit, implicit, host] = KINDS.map(|kind| self.rule(kind));
        Policy { explicit, implicit, host }
    }

    /// Changes the policy. Turns of kinds whose rules differ are forgotten: those who had to wait longer no longer hold up
    /// others.
    pub(in crate::memory) fn set(&self, policy: &Policy) {
        let mut next = self.next.lock();
        for kind in KINDS {
            let rule = policy.rule(kind);
            if self.rule(kind) != rule {
                next[kind as usize] = None;
                self.rules[kind as usize].store(rule.to_word(), Ordering::Release);
            }
        }
    }

    /// Takes the next turn of a kind, and tells how long it is until then; `None` if the limit is another one by now.
    pub(in crate::memory) fn take(
        &self,
        kind: ConversionKind,
        per_second: NonZeroU32,
        now: Instant,
    ) -> Option<Duration> {
        let mut next = self.next.lock();
        if self.rule(kind) != (Rule::Limit { per_second }) {
            return None;
        }
        let turn = &mut next[kind as usize];
        // Time that nobody used is not saved up.
        let mine = turn.map_or(now, |next| next.max(now));
        *turn = Some(mine + Duration::from_secs(1) / per_second.get());
        Some(mine - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_evenly_spaced_and_each_kind_has_its_own() {
        let ten = NonZeroU32::new(10).unwrap();
        let limit = Rule::Limit { per_second: ten };
        let turns = Turns::new(&Policy { explicit: limit, implicit: limit, host: Rule::Allow });
        let now = Instant::now();
        let wait = |kind, at: u64| turns.take(kind, ten, now + Duration::from_millis(at)).unwrap().as_millis();
        assert_eq!(wait(ConversionKind::Explicit, 0), 0);
        assert_eq!(wait(ConversionKind::Explicit, 0), 100);
        assert_eq!(wait(ConversionKind::Explicit, 50), 150);
        assert_eq!(wait(ConversionKind::Implicit, 50), 0);
        // After a pause there is one turn, not many.
        assert_eq!(wait(ConversionKind::Explicit, 5000), 0);
        assert_eq!(wait(ConversionKind::Explicit, 5000), 100);
    }

    #[test]
    fn a_policy_is_what_was_set_and_changed_kinds_wait_for_nobody() {
        let limit = |per_second| Rule::Limit { per_second: NonZeroU32::new(per_second).unwrap() };
        let first = Policy { explicit: limit(1), implicit: Rule::Refuse, host: limit(1) };
        let (turns, now) = (Turns::new(&first), Instant::now());
        assert_eq!(turns.policy(), first);
        let one = NonZeroU32::new(1).unwrap();
        for kind in [ConversionKind::Explicit, ConversionKind::Host] {
            assert_eq!(turns.take(kind, one, now), Some(Duration::ZERO));
        }
        let second = Policy { explicit: limit(2), implicit: Rule::Allow, host: limit(1) };
        turns.set(&second);
        assert_eq!(turns.policy(), second);
        assert_eq!(turns.take(ConversionKind::Explicit, one, now), None, "its rule is another one");
        let two = NonZeroU32::new(2).unwrap();
        assert_eq!(turns.take(ConversionKind::Explicit, two, now), Some(Duration::ZERO), "and holds up nobody");
        assert_eq!(turns.take(ConversionKind::Host, one, now), Some(Duration::from_secs(1)), "its rule is the same");
        assert_eq!(turns.take(ConversionKind::Implicit, one, now), None);
    }
}
