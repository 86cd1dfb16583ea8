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
    /// Waits for all guards and pins on pages of `range`, which are revoked.
    fn quiesce(&self, guards: &Guards, range: PageRange, report: &mut Report<'_>) -> ControlFlow<()>;
}

/// Waits until every overlapping guard and pin has ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct WaitForGuards;

impl Quiesce for WaitForGuards {
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
    /// Waits for the guards on these pages. The writer is not needed meanwhile.
    ///
    /// # Errors
    /// The pages as they are, revoked, if `report` gave up.
    ///
    /// # Panics
    /// If these are guards on another map.
    pub fn quiesce(self, how: &dyn Quiesce, guards: &Guards, report: &mut Report<'_>) -> Result<Quiesced, Revoked> {
        assert!(Arc::ptr_eq(guards.plane(), self.plane()), "the guards are on another map");
        match how.quiesce(guards, self.range(), report) {
            ControlFlow::Continue(()) => Ok(self.into_quiesced()),
            ControlFlow::Break(()) => Err(self),
        }
    }
}
