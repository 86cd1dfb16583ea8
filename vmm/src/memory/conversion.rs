//! Conversions: changing the state of a range of pages while vCPUs run and devices do I/O.
//!
//! Explicit, implicit and host conversions all come through [`GuestRam::convert`]. A request is split by range of RAM and
//! into runs of pages that have the other state, and those into pieces of at most [`PIECE`]; what has the wanted state
//! already is left alone, contents and all. Each piece then takes these steps, whose order is that of their types:
//!
//! ```text
//! to private   revoke ──► quiesce ──► unmap ──► set attribute ──► publish ──► (reply) ──► discard shared
//!              Revoked    Quiesced   Unmapped        Flipped           Debt
//!
//! to shared    set attribute and publish ──► map ──► (reply) ──► discard private
//!                      Published             Debt
//! ```
//!
//! * *Revoke*: devices are refused new guards ([`super::guarded`]).
//! * *Quiesce*: the guards and pins that overlap have ended. Without limit; reported after each second, and cut short by a pause.
//! * *Unmap*, *map*: [`ConversionListener`]s let go of the pages, or take them.
//! * *Set attribute* and *publish* are done under one lock, that of the ledger. Waiting and discarding are not, and go on in
//!   parallel.
//! * *Discard*: [`super::discards`].
//!
//! A step can only be taken with the proof of the one before, and a proof can only be used once.
//!
//! What fails is undone in reverse: the listeners get back what they had, devices are let in again, and the pages are what
//! they were. Pieces before it stay converted, pieces behind it are not touched; on each, the map, KVM's attributes and the
//! backings agree. docs/hot-conversion.md has the whole table.
//!
//! Cost: for each piece one turn at the lock (to private two, where there are listeners, or guards or pins to wait for), one
//! attribute call for each alias that follows the state, and one discard. What is always taken by a single page's
//! conversion is inlined into [`GuestRam::convert`], and what is not is cold: calls were a third of the engine's own time on
//! the nested host.

mod error;
mod flip;
mod listener;
mod policy;
mod to_private;
mod to_shared;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::x86_64::memory_layout::RamRange;
use arch::x86_64::private_faults::{ConversionKind, ConversionRequest};
use hypervisor::{GpaRange, PAGE_SIZE, PageState};

use super::GuestRam;
use super::guarded::PageRange;
use super::ledger::Ledger;
use super::statistics::Stopwatch;

pub use error::{ConversionError, SetupError};
pub use listener::ConversionListener;
pub(super) use policy::Turns;
pub use policy::{Policy, Rule};

/// The most bytes that are converted in one piece: what others wait for at most, at the lock or for a discard. A whole
/// number of the largest pages that a backing may have.
pub const PIECE: u64 = 8 << 20;

/// The same in pages.
const PIECE_PAGES: u64 = PIECE / PAGE_SIZE;

/// How long a thread that waits for its turn sleeps before it looks at the policy again, and whether the machine is ending.
const NAP: Duration = Duration::from_millis(50);

/// Pages that are converted together: in one range of RAM, all in the same state.
struct Piece<'a> {
    ram: &'a RamRange,
    pages: PageRange,
    gpa: GpaRange,
}

impl<'a> Piece<'a> {
    /// The first piece of a run of pages of this range.
    fn first_of(ram: &'a RamRange, run: PageRange) -> Result<Self, hypervisor::RangeError> {
        let end = run.end().min((run.first() / PIECE_PAGES + 1) * PIECE_PAGES);
        let pages = PageRange::new(run.first(), end).unwrap_or(run);
        let gpa = GpaRange::new(ram.gpa.start() + (pages.offset() - ram.offset), pages.bytes())?;
        Ok(Self { ram, pages, gpa })
    }

    /// Takes the pages away from these listeners, the last first.
    fn unmap(&self, listeners: &[Arc<dyn ConversionListener>]) {
        for listener in listeners.iter().rev().filter(|_| self.ram.devices) {
            listener.unmap(self.gpa);
        }
    }

    fn failed(&self, to: PageState, source: hypervisor::Error) -> ConversionError {
        ConversionError::Failed { range: self.gpa, to, source }
    }
}

impl GuestRam {
    /// Converts a range, if the policy allows it. Parts that have the state already are left alone. Returns whether any page
    /// changed.
    ///
    /// # Errors
    /// The first piece that could not be converted. Pieces before it are converted, pieces behind it are not; on each of
    /// them the map, the attributes and the backings agree.
    pub fn convert(&self, request: ConversionRequest) -> Result<bool, ConversionError> {
        let ConversionRequest { range, to, kind, .. } = request;
        let result = match self.turns.rule(kind) {
            Rule::Allow => Ok(true),
            _ => self.ask_policy(range, to, kind),
        };
        let mut watch = self.counters.stopwatch(kind, range);
        let result = match result {
            Ok(true) => self.convert_range(range, to, kind, &mut watch),
            other => other,
        };
        self.count(kind, range, watch, &result);
        result
    }

    /// Makes all of RAM private, before the guest's first instruction. No policy forbids it.
    ///
    /// # Errors
    /// A conversion that failed; the guest can't go on.
    pub fn make_all_private(&self) -> Result<(), ConversionError> {
        self.layout.ranges().iter().try_for_each(|ram| self.make_private(ram.gpa))
    }

    /// Makes some of it private, as [`GuestRam::make_all_private`] does.
    ///
    /// # Errors
    /// As there.
    pub fn make_private(&self, range: GpaRange) -> Result<(), ConversionError> {
        let mut watch = self.counters.stopwatch(ConversionKind::Host, range);
        let result = self.convert_range(range, PageState::Private, ConversionKind::Host, &mut watch);
        self.count(ConversionKind::Host, range, watch, &result);
        result.map(drop)
    }

    fn count(&self, kind: ConversionKind, range: GpaRange, watch: Stopwatch, result: &Result<bool, ConversionError>) {
        match result {
            Ok(true) => self.counters.count_conversion(kind, range, watch),
            // It comes again.
            Ok(false) | Err(ConversionError::Interrupted) => {}
            Err(_) => self.counters.count_failure(),
        }
    }

    /// Whether there is anything that the policy lets go on: nobody is refused or delayed for what changes nothing. Where
    /// all may go on, the conversion itself finds that out.
    #[cold]
    fn ask_policy(&self, range: GpaRange, to: PageState, kind: ConversionKind) -> Result<bool, ConversionError> {
        if kind == ConversionKind::Implicit {
            // The access met KVM's attribute, which may be ahead of the map until the ledger is let go.
            drop(self.ledger());
        }
        if self.is_settled(range, to) {
            return Ok(false);
        }
        self.wait_for_turn(kind).map(|()| true)
    }

    /// Whether all of this range has this state, and no conversion is under way that may end otherwise. What is not RAM is
    /// shared.
    fn is_settled(&self, range: GpaRange, state: PageState) -> bool {
        let plane = self.devices.guards().plane();
        self.layout.split(range).all(|(ram, part)| {
            PageRange::touched(ram.backing_offset(part.start()), part.len())
                .is_some_and(|pages| plane.is_all(pages, state) && !self.discards.is_undecided(pages))
        })
    }

    /// Waits for the turn that the policy gives. Whoever waits follows a policy that changes meanwhile.
    fn wait_for_turn(&self, kind: ConversionKind) -> Result<(), ConversionError> {
        let mut turn = None;
        loop {
            let now = Instant::now();
            let rate = match self.turns.rule(kind) {
                Rule::Allow => return Ok(()),
                Rule::Refuse => return Err(ConversionError::Refused { kind }),
                Rule::Limit { per_second } => per_second,
            };
            let mine = match turn {
                Some((before, mine)) if before == rate => mine,
                _ => match self.turns.take(kind, rate, now) {
                    Some(left) => now + left,
                    None => continue,
                },
            };
            turn = Some((rate, mine));
            let left = mine.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(());
            }
            self.check_waiting()?;
            std::thread::sleep(left.min(NAP));
        }
    }

    /// Returns whether any page changed.
    #[inline(always)]
    fn convert_range(
        &self,
        range: GpaRange,
        to: PageState,
        kind: ConversionKind,
        watch: &mut Stopwatch,
    ) -> Result<bool, ConversionError> {
        if to == PageState::Private && !self.layout.converts() {
            return Err(ConversionError::NotConvertible { range });
        }
        if let Err(error) = self.check_backlog(range) {
            return if self.is_settled(range, to) { Ok(false) } else { Err(error) };
        }
        let ledger = self.running_ledger()?;
        if to == PageState::Private {
            // All of it is refused, not only the piece with the lent page.
            ledger.lent.check(range)?;
        }
        let (mut first, mut changed) = (Some(ledger), false);
        for (ram, part) in self.layout.split(range) {
            let mut rest = PageRange::touched(ram.backing_offset(part.start()), part.len());
            while let Some(pages) = rest {
                if kind != ConversionKind::Host {
                    self.check_waiting()?;
                }
                let ledger = match first.take() {
                    Some(ledger) => ledger,
                    None => {
                        self.check_backlog(range)?;
                        self.running_ledger()?
                    }
                };
                let converted = match to {
                    PageState::Private => self.next_to_private(ledger, ram, pages, watch)?,
                    PageState::Shared => self.next_to_shared(ledger, ram, pages, watch)?,
                };
                let Some(converted) = converted else {
                    // All of it is so, unless a conversion that made it so is undone yet.
                    if self.discards.wait_until_decided(pages, || self.is_ending()) {
                        continue;
                    }
                    break;
                };
                changed = true;
                rest = PageRange::new(converted.end(), pages.end());
            }
        }
        Ok(changed)
    }

    #[inline(always)]
    fn check_backlog(&self, range: GpaRange) -> Result<(), ConversionError> {
        self.discards.check_limit().map_err(|source| ConversionError::Owed { range, source })
    }

    /// The first run of pages in this state among these, no longer than a piece may be: a longer one would be measured again
    /// for each of its pieces.
    #[inline(always)]
    pub(super) fn first_run(ledger: &Ledger, pages: PageRange, state: PageState) -> Option<PageRange> {
        let mut first = pages.first();
        while let Some(part) = PageRange::new(first, pages.end().min((first / PIECE_PAGES + 1) * PIECE_PAGES)) {
            if let Some(run) = ledger.writer.first_run(part, state) {
                return Some(run);
            }
            first = part.end();
        }
        None
    }

    /// Settles what is owed for a piece, so that it can be converted.
    fn settle_for(&self, piece: &Piece<'_>, watch: &mut Stopwatch) -> Result<(), ConversionError> {
        watch.waits();
        let settled = self.discards.settle_all_in(piece.pages, || self.is_ending());
        settled.map_err(|source| ConversionError::Owed { range: piece.gpa, source })
    }
}
