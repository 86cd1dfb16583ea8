//! Guest memory: its backings, the record of each page's state, and conversions between the states.
//!
//! [`GuestRam`] puts the ranges of a [`MemoryLayout`] before the guest and keeps the [`AttributeMap`], the only record of
//! what is shared and what is private: KVM can't be asked. A conversion walks the steps that the layout gives for it,
//! under one lock, and undoes them if one fails.
//!
//! Guarantees:
//! * After every conversion, whether it succeeded or not, the map, KVM's attributes and the backings agree. Where that
//!   can't be had (an undo fails), the error is [`ConversionError::Inconsistent`] and the machine must stop.
//! * Pages that are in the wanted state already are left alone, contents and all.
//! * Each conversion gives back the memory of the side that the pages leave.
//! * A page that KVM itself writes to for a paravirtual MSR stays shared for as long as it does.
//!
//! Cost: one bit a page for the map; a conversion holds the lock for the system calls of at most a few hundred runs of
//! pages at a time.

mod attribute_map;
mod conversion;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::x86_64::MemoryLayout;
use arch::x86_64::memory_layout::{Alias, AttributeRule, RamRange};
use arch::x86_64::msr::{Facility, ParavirtualMemory};
use arch::x86_64::request::{ConversionKind, ConversionRequest};
use hypervisor::{Backing, GpaRange, GuestMemfd, PageState, Region, SharedMemory, Slice, Vm};
use serde::Serialize;
use vm_memory::{Bytes, VolatileMemory};

use crate::{Error, Result};

pub use attribute_map::AttributeMap;
pub use conversion::ConversionError;

/// Name of the shared backing; it shows in `/proc/PID/maps`.
const SHARED_NAME: &str = "guest-ram";

/// Figures about guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryStatistics {
    /// All RAM, in bytes.
    pub ram_bytes: u64,
    /// RAM that is private now, in bytes.
    pub private_bytes: u64,
    /// RAM that is shared now, in bytes.
    pub shared_bytes: u64,
    /// Conversions that the guest announced and that changed something.
    pub conversions_explicit: u64,
    /// Conversions that an access asked for.
    pub conversions_implicit: u64,
    /// Conversions of the VMM's own, such as that at launch.
    pub conversions_host: u64,
    /// Requests that were refused or failed.
    pub conversions_failed: u64,
}

/// All memory of one guest.
pub struct GuestRam {
    vm: Arc<dyn Vm>,
    layout: MemoryLayout,
    shared: Arc<SharedMemory>,
    private: Option<Arc<GuestMemfd>>,
    record: Mutex<Record>,
    ending: AtomicBool,
}

/// A vCPU, and what KVM uses the memory for.
pub(crate) type ParavirtualUser = (u8, Facility);

/// What is known about the pages, changed under one lock together with KVM's attributes.
struct Record {
    map: AttributeMap,
    /// Memory that KVM writes to. At most two entries for each user: what it uses, and what it is about to.
    paravirtual: Vec<(ParavirtualUser, ParavirtualMemory)>,
    explicit: u64,
    implicit: u64,
    host: u64,
    failed: u64,
    /// Set when an undo failed: nothing may be converted any more.
    inconsistent: bool,
}

impl GuestRam {
    /// Creates the backings and puts them before the guest, all of it shared.
    ///
    /// # Errors
    /// No memory for it, or a VM that does not take it.
    pub fn new(vm: Arc<dyn Vm>, layout: MemoryLayout) -> Result<Self> {
        let shared = Arc::new(SharedMemory::new(SHARED_NAME, layout.size())?);
        let private = layout.converts().then(|| vm.create_guest_memfd(layout.size())).transpose()?;
        let map = AttributeMap::new(layout.size());
        let ram = Self {
            vm,
            layout,
            shared,
            private,
            record: Mutex::new(Record {
                map,
                paravirtual: Vec::new(),
                explicit: 0,
                implicit: 0,
                host: 0,
                failed: 0,
                inconsistent: false,
            }),
            ending: AtomicBool::new(false),
        };
        for range in ram.layout.ranges() {
            for alias in &range.aliases {
                ram.add_alias(range, alias)?;
            }
        }
        Ok(ram)
    }

    fn add_alias(&self, range: &RamRange, alias: &Alias) -> Result<()> {
        let place = range.gpa.offset_by(alias.offset).map_err(hypervisor::Error::from)?;
        // The attribute comes before the region, so that no access ever finds the wrong one.
        if alias.attribute == AttributeRule::Fixed(PageState::Private) {
            self.vm.set_attribute(place, PageState::Private)?;
        }
        let shared = alias.shared.then(|| Slice { backing: self.shared.clone(), offset: range.offset });
        let private = self.private.as_ref().filter(|_| alias.private);
        let private = private.map(|backing| Slice { backing: backing.clone(), offset: range.offset });
        self.vm.add_region(alias.slot, &Region { range: place, shared, private })?;
        Ok(())
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // A panic in here would leave `inconsistent` unset only between two steps, and no step panics.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How guest memory is laid out.
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Writes to shared memory before the guest runs.
    ///
    /// # Errors
    /// Bytes outside RAM, or in private pages.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<()> {
        let refused = || Error::GuestMemory { gpa, size: data.len() };
        let Some((range, _, _)) = self.layout.locate(gpa) else { return Err(refused()) };
        let Some(end) = gpa.checked_add(data.len() as u64).filter(|end| *end <= self.layout.low_ram_end()) else {
            return Err(refused());
        };
        // RAM below 4 GiB is in one piece, in the backing as well.
        let offset = range.backing_offset(gpa);
        let record = self.record();
        if !record.map.is_all(offset, end - gpa, PageState::Shared) {
            return Err(refused());
        }
        let at = usize::try_from(offset).map_err(|_| refused())?;
        self.shared.mapping().as_volatile_slice().write_slice(data, at).map_err(|_| refused())
    }

    /// Makes all of RAM private, once the guest holds in private memory all that it needs.
    ///
    /// # Errors
    /// A conversion that failed; the guest can't go on.
    pub fn make_all_private(&self) -> std::result::Result<(), ConversionError> {
        for ram in self.layout.ranges() {
            self.convert(ConversionRequest { range: ram.gpa, to: PageState::Private, kind: ConversionKind::Host })?;
        }
        Ok(())
    }

    /// Reserves this memory for KVM's use, if all of it is shared RAM: its pages stay shared until
    /// [`GuestRam::settle_paravirtual`] says what came of it. What the same facility uses at the moment stays reserved, too.
    ///
    /// Returns whether KVM may have it.
    pub(crate) fn reserve_paravirtual(&self, user: ParavirtualUser, memory: ParavirtualMemory) -> bool {
        let mut record = self.record();
        let Some(pages) = pages_of(memory) else { return false };
        let mut covered = 0;
        for (ram, part) in self.layout.split(pages) {
            let shared = record.map.is_all(ram.backing_offset(part.start()), part.len(), PageState::Shared);
            if !ram.devices || !shared {
                return false;
            }
            covered += part.len();
        }
        if covered != pages.len() {
            return false;
        }
        record.paravirtual.push((user, memory));
        true
    }

    /// Ends what [`GuestRam::reserve_paravirtual`] began. If KVM took the value, it uses `memory` (if that lasts) and no
    /// longer what it used before; if not, it goes on with what it used before.
    pub(crate) fn settle_paravirtual(&self, user: ParavirtualUser, memory: Option<ParavirtualMemory>, taken: bool) {
        let mut record = self.record();
        if taken {
            record.paravirtual.retain(|(other, _)| *other != user);
            record.paravirtual.extend(memory.filter(|memory| memory.lasting).map(|memory| (user, memory)));
        } else if memory.is_some()
            && let Some(newest) = record.paravirtual.iter().rposition(|(other, _)| *other == user)
        {
            record.paravirtual.remove(newest);
        }
    }

    /// Ends conversions early, now and from now on: the machine stops.
    pub(crate) fn end_conversions(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Counts a request that was refused before it became a conversion.
    pub(crate) fn count_refusal(&self) {
        self.record().failed += 1;
    }

    /// Figures, all of one moment.
    pub fn statistics(&self) -> MemoryStatistics {
        let record = self.record();
        let private_bytes = record.map.private_bytes();
        MemoryStatistics {
            ram_bytes: self.layout.size(),
            private_bytes,
            shared_bytes: self.layout.size() - private_bytes,
            conversions_explicit: record.explicit,
            conversions_implicit: record.implicit,
            conversions_host: record.host,
            conversions_failed: record.failed,
        }
    }

    fn backing(&self, side: PageState) -> Option<Backing> {
        match side {
            PageState::Shared => Some(Backing::Shared(self.shared.clone())),
            PageState::Private => self.private.clone().map(Backing::Private),
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
