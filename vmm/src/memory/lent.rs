//! Pages that KVM writes to for a paravirtual MSR. They stay shared for as long as it does: KVM goes to a page's shared
//! backing whatever its state is.

use arch::x86_64::msr::{Facility, ParavirtualMemory};
use hypervisor::GpaRange;

use super::GuestRam;
use super::conversion::ConversionError;
use super::guarded::PageRange;

/// A vCPU, and what KVM uses the memory for.
pub(crate) type ParavirtualUser = (u8, Facility);

/// The pages lent to KVM. At most two entries for each user: what it uses, and what it is about to.
#[derive(Default)]
pub(super) struct LentMemory(Vec<(ParavirtualUser, ParavirtualMemory)>);

impl LentMemory {
    /// Refuses to make pages private that KVM writes to.
    pub(super) fn check(&self, range: GpaRange) -> Result<(), ConversionError> {
        let lent = |memory| pages_of(memory).is_some_and(|pages| pages.intersection(range).is_some());
        match self.0.iter().find(|(_, memory)| lent(*memory)) {
            Some(((vcpu, facility), _)) => Err(ConversionError::Lent { range, vcpu: *vcpu, facility: *facility }),
            None => Ok(()),
        }
    }
}

impl GuestRam {
    /// Reserves this memory for KVM's use, if all of it is shared RAM: its pages stay shared until
    /// [`GuestRam::settle_paravirtual`] says what came of it. What the same facility uses at the moment stays reserved, too.
    ///
    /// Returns whether KVM may have it.
    pub(crate) fn reserve_paravirtual(&self, user: ParavirtualUser, memory: ParavirtualMemory) -> bool {
        let mut ledger = self.ledger();
        let Some(pages) = pages_of(memory) else { return false };
        let mut covered = 0;
        for (ram, part) in self.layout.split(pages) {
            let shared = PageRange::touched(ram.backing_offset(part.start()), part.len())
                .is_some_and(|pages| ledger.is_firmly_shared(pages));
            if !ram.devices || !shared {
                return false;
            }
            covered += part.len();
        }
        if covered != pages.len() {
            return false;
        }
        ledger.lent.0.push((user, memory));
        true
    }

    /// Ends what [`GuestRam::reserve_paravirtual`] began. If KVM took the value, it uses `memory` (if that lasts) and no
    /// longer what it used before; if not, it goes on with what it used before.
    pub(crate) fn settle_paravirtual(&self, user: ParavirtualUser, memory: Option<ParavirtualMemory>, taken: bool) {
        let lent = &mut self.ledger().lent.0;
        if taken {
            lent.retain(|(other, _)| *other != user);
            lent.extend(memory.filter(|memory| memory.lasting).map(|memory| (user, memory)));
        } else if memory.is_some()
            && let Some(newest) = lent.iter().rposition(|(other, _)| *other == user)
        {
            lent.remove(newest);
        }
    }
}

/// The pages that hold these bytes; `None` if they end beyond the address space.
fn pages_of(memory: ParavirtualMemory) -> Option<GpaRange> {
    let last = memory.gpa.checked_add(memory.size.checked_sub(1)?)?;
    let first = GpaRange::page_of(memory.gpa).ok()?;
    let last = GpaRange::page_of(last).ok()?;
    GpaRange::new(first.start(), last.end() - first.start()).ok()
}
