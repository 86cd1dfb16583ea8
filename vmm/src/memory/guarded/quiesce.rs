//! Waiting for the guards and pins on revoked pages to end.
//!
//! Only guards whose pages overlap are waited for, each until it has been seen to end once: guards that begin later find
//! their pages refused and end by themselves. A wait has no limit; whoever waits is told again and again, and who is in the
//! way, and may give up then.

use std::ops::ControlFlow;
use std::time::Duration;

use super::guards::Guards;
use super::pages::PageRange;
use super::sync::{Arc, Wait};
use super::writer::{Quiesced, Revoked};

/// How often who waits is told, and asked whether to go on: what an end or a pause of the machine waits for at most.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A conversion that is waiting for a device.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The pages that are to be converted.
    pub range: PageRange,
    /// How long it has been waiting.
    pub waited: Duration,
    /// Who guards or pins some of them.
    pub owner: Arc<str>,
}

/// Told of a wait after each [`LOOK_INTERVAL`]; [`ControlFlow::Break`] gives the conversion up.
pub type Report<'a> = dyn FnMut(&Waiting) -> ControlFlow<()> + 'a;

/// How the guards on revoked pages come to an end: for the product, [`WaitForGuards`].
///
/// The rule that an implementation keeps: when it returns [`ControlFlow::Continue`], no guard or pin that began before
/// the call names a page of `range`, and all that was done under such guards happened before the return.
pub trait Quiesce: Send + Sync {
    /// Whether there is nothing to wait for: the same rule holds for `true`. May be asked before a wait, with locks held, so
    /// it must not wait itself; `false` is never wrong.
    fn is_quiet(&self, _guards: &Guards, _range: PageRange) -> bool {
        false
    }

    /// Waits for all guards and pins on pages of `range`, which are revoked.
    fn quiesce(&self, guards: &Guards, range: PageRange, report: &mut Report<'_>) -> ControlFlow<()>;
}

/// Waits until every overlapping guard and pin has ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct WaitForGuards;

impl Quiesce for WaitForGuards {
    fn is_quiet(&self, guards: &Guards, range: PageRange) -> bool {
        guards.plane().registry.is_quiet(range)
    }

    fn quiesce(&self, guards: &Guards, range: PageRange, report: &mut Report<'_>) -> ControlFlow<()> {
        let registry = &guards.plane().registry;
        let mut wait = None;
        for (line, slot, owner) in registry.overlapping(range) {
            let (wait, next_look) = wait.get_or_insert_with(|| (Wait::new(), LOOK_INTERVAL));
            while line.pages(slot).is_some_and(|pages| pages.overlaps(range)) {
                wait.pause();
                tell(wait, next_look, range, &owner, report)?;
            }
        }
        while let Some(owner) = registry.pins.owner_in(range) {
            let (wait, next_look) = wait.get_or_insert_with(|| (Wait::new(), LOOK_INTERVAL));
            registry.pins.wait_for_an_end(range, next_look.saturating_sub(wait.elapsed()));
            tell(wait, next_look, range, &owner, report)?;
        }
        ControlFlow::Continue(())
    }
}

fn tell(
    wait: &Wait,
    next_look: &mut Duration,
    range: PageRange,
    owner: &Arc<str>,
    report: &mut Report<'_>,
) -> ControlFlow<()> {
    let waited = wait.elapsed();
    if waited < *next_look {
        return ControlFlow::Continue(());
    }
    *next_look = waited + LOOK_INTERVAL;
    report(&Waiting { range, waited, owner: owner.clone() })
}

impl Revoked {
    /// Finds out, without waiting, whether no guard is on these pages.
    ///
    /// # Errors
    /// The pages as they are, revoked, if there may be something to wait for.
    ///
    /// # Panics
    /// If these are guards on another map.
    pub fn try_quiesce(self, how: &dyn Quiesce, guards: &Guards) -> Result<Quiesced, Revoked> {
        assert!(guards.plane().id == self.map(), "the guards are on another map");
        if how.is_quiet(guards, self.range()) { Ok(self.into_quiesced()) } else { Err(self) }
    }

    /// Waits for the guards on these pages. The writer is not needed meanwhile.
    ///
    /// # Errors
    /// The pages as they are, revoked, if `report` gave up.
    ///
    /// # Panics
    /// If these are guards on another map.
    pub fn quiesce(self, how: &dyn Quiesce, guards: &Guards, report: &mut Report<'_>) -> Result<Quiesced, Revoked> {
        assert!(guards.plane().id == self.map(), "the guards are on another map");
        match how.quiesce(guards, self.range(), report) {
            ControlFlow::Continue(()) => Ok(self.into_quiesced()),
            ControlFlow::Break(()) => Err(self),
        }
    }
}
