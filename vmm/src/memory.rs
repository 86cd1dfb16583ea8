//! Guest memory: its backings, the record of each page's state, guarded access to it, and conversions between the states.
//!
//! [`GuestRam`] puts the ranges of a [`MemoryLayout`] before the guest and keeps the attribute map, the only record of what
//! is shared and what is private: KVM can't be asked. Devices get at guest memory through the views of its
//! [`DeviceMemory`], and no other way.
//!
//! | room | what is in it |
//! |---|---|
//! | [`guarded`] | the attribute map, and access to shared pages that conversions wait for |
//! | [`conversion`] | the steps of a conversion, their undo, policy, listeners |
//! | [`discards`] | giving back the memory of the side that pages have left |
//! | `interruption` | cutting waits short when the machine pauses or ends |
//! | `populate` | private memory that the guest is about to touch |
//! | `open_copies` | what the guest leaves in shared memory that is always open |
//! | `ledger` | what changes under one lock |
//! | `lent` | pages that KVM itself writes to |
//! | [`event`], `statistics` | what is told of all this |
//!
//! Guarantees:
//! * No device reads or writes a page after it became private, and none sees what a page held before it became shared.
//! * After every conversion, whether it succeeded or not, the map, KVM's attributes and the backings agree. Where that
//!   can't be had (an undo fails), the error is [`ConversionError::Inconsistent`] and the machine must stop.
//! * Pages that are in the wanted state already are left alone, contents and all.
//! * Each conversion gives back the memory of the side that the pages leave, small pieces at once, large ones soon.
//! * A page that KVM itself writes to for a paravirtual MSR stays shared for as long as it does.
//!
//! Cost: one bit a page for the map, prefaulted; one thread that gives memory back, where there are conversions.

pub mod conversion;
pub mod discards;
pub mod event;
pub mod guarded;
mod interruption;
mod ledger;
mod lent;
mod open_copies;
mod populate;
mod reclaim;
mod statistics;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arch::x86_64::MemoryLayout;
use arch::x86_64::memory_layout::{Alias, AttributeRule, RamRange};
use hypervisor::{Backing, GuestMemfd, PAGE_SIZE, PageState, Region, SharedMemory, Slice, Vm};
use parking_lot::{Condvar, Mutex};
use vm_memory::{Bytes, VolatileMemory};

use crate::{Error, Result};
use conversion::{ConversionListener, Policy, SetupError, Turns};
use discards::Discards;
use event::{MemoryEvent, MemoryObserver};
use guarded::{DeviceMemory, Guards, PageRange, Quiesce, RamPiece, RamTable, RefusedAccess, StatePlane, WaitForGuards};
use ledger::Ledger;
use lent::LentMemory;
use statistics::Counters;

pub use conversion::ConversionError;
pub(crate) use open_copies::OpenCopies;
pub use statistics::{LATENCIES, LatencyHistogram, MemoryStatistics};

/// Name of the shared backing; it shows in `/proc/PID/maps`.
const SHARED_NAME: &str = "guest-ram";

/// How many conversions to private may wait for devices at a time; more wait for these.
const IN_FLIGHT: usize = 256;

/// The least that the backlog of discards may hold, in bytes, and the part of RAM that it may hold otherwise.
const MIN_BACKLOG: u64 = 8 << 20;
const BACKLOG_PART: u64 = 64;

/// What can be chosen about guest memory.
pub struct RamOptions {
    /// How the guards on pages come to an end before these become private.
    pub quiesce: Box<dyn Quiesce>,
    /// What conversions may do.
    pub policy: Policy,
    /// The most bytes that discards may hold back; by default a 64th of RAM, and at least 8 MiB.
    pub discard_backlog: Option<u64>,
    /// Size in bytes of the pages of the shared side that go back only whole; by default what the backing says.
    pub huge_page_size: Option<u64>,
    /// Told of events.
    pub observer: Arc<MemoryObserver>,
}

impl Default for RamOptions {
    fn default() -> Self {
        Self {
            quiesce: Box::new(WaitForGuards),
            policy: Policy::default(),
            discard_backlog: None,
            huge_page_size: None,
            observer: Arc::new(|_| {}),
        }
    }
}

/// All memory of one guest.
pub struct GuestRam {
    vm: Arc<dyn Vm>,
    layout: MemoryLayout,
    shared: Arc<SharedMemory>,
    private: Option<Arc<GuestMemfd>>,
    devices: Arc<DeviceMemory>,
    /// Pages in a huge page of the shared backing.
    huge_page_pages: u64,
    ledger: Mutex<Ledger>,
    /// A conversion to private has ended.
    conversion_ended: Condvar,
    discards: Discards,
    quiesce: Box<dyn Quiesce>,
    turns: Turns,
    counters: Counters,
    observer: Arc<MemoryObserver>,
    ending: AtomicBool,
    /// The machine pauses.
    interrupted: AtomicBool,
}

impl GuestRam {
    /// Creates the backings and puts them before the guest, all of it shared.
    ///
    /// # Errors
    /// No memory for it, or a VM that does not take it.
    pub fn new(vm: Arc<dyn Vm>, layout: MemoryLayout, options: RamOptions) -> std::result::Result<Self, SetupError> {
        let RamOptions { quiesce, policy, discard_backlog, huge_page_size, observer } = options;
        let size = layout.size();
        let (plane, writer) = StatePlane::new(size, IN_FLIGHT)?;
        let pieces =
            layout.ranges().iter().map(|ram| RamPiece { gpa: ram.gpa, offset: ram.offset, devices: ram.devices });
        let table = RamTable::new(pieces, size).map_err(|error| SetupError::Layout(error.into()))?;
        // Memory that is never converted may be in huge pages: a conversion would have to break them up.
        let converts = layout.converts();
        let shared = if converts { SharedMemory::new(SHARED_NAME, size) } else { SharedMemory::anonymous(size) };
        let shared = Arc::new(shared?);
        let private = layout.converts().then(|| vm.create_guest_memfd(size)).transpose()?;
        let refused = observer.clone();
        let refused = move |access: &RefusedAccess| refused(&MemoryEvent::AccessRefused(access));
        let devices = DeviceMemory::new(shared.clone(), table, Guards::new(plane), Box::new(refused))
            .map_err(|error| SetupError::Layout(error.into()))?;
        let discards = Discards::new(
            vm.clone(),
            Backing::Shared(shared.clone()),
            private.clone().map(Backing::Private),
            discard_backlog.unwrap_or((size / BACKLOG_PART).max(MIN_BACKLOG)),
            discard_observer(observer.clone()),
        )
        .map_err(SetupError::Thread)?;
        let ram = Self {
            vm,
            layout,
            huge_page_pages: huge_page_size.unwrap_or_else(|| shared.huge_page_size()) / PAGE_SIZE,
            shared,
            private,
            devices,
            ledger: Mutex::new(Ledger {
                writer,
                listeners: Arc::new([]),
                lent: LentMemory::default(),
                inconsistent: false,
            }),
            conversion_ended: Condvar::new(),
            discards,
            quiesce,
            turns: Turns::new(&policy),
            counters: Counters::default(),
            observer,
            ending: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
        };
        for range in ram.layout.ranges() {
            for alias in &range.aliases {
                ram.add_alias(range, alias)?;
            }
        }
        Ok(ram)
    }

    fn add_alias(&self, range: &RamRange, alias: &Alias) -> std::result::Result<(), SetupError> {
        let place = range.gpa.offset_by(alias.offset).map_err(hypervisor::Error::from)?;
        let shared = alias.shared.then(|| Slice { backing: self.shared.clone(), offset: range.offset });
        let private = self.private.as_ref().filter(|_| alias.private);
        let private = private.map(|backing| Slice { backing: backing.clone(), offset: range.offset });
        // There is no vCPU yet, so nobody finds the wrong attribute. A region that is too large is refused at once; an
        // attribute is taken wherever it is set, page by page.
        self.vm.add_region(alias.slot, &Region { range: place, shared, private })?;
        if alias.attribute == AttributeRule::Fixed(PageState::Private) {
            self.vm.set_attribute(place, PageState::Private)?;
        }
        Ok(())
    }

    /// How guest memory is laid out.
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Guest memory as devices may use it.
    pub fn devices(&self) -> &Arc<DeviceMemory> {
        &self.devices
    }

    /// What conversions may do.
    pub fn policy(&self) -> Policy {
        self.turns.policy()
    }

    /// Changes what conversions may do, from the next request on, and for those that wait for their turns.
    pub fn set_policy(&self, policy: Policy) {
        self.turns.set(&policy);
    }

    /// Lets somebody else map shared memory: gives it all that is shared now, and tells it of each conversion from then on.
    ///
    /// # Errors
    /// The listener's own, where it can't map what is shared; it is told of nothing more then.
    pub fn add_listener(
        &self,
        listener: Arc<dyn ConversionListener>,
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        // Under the lock, so that nothing becomes private that was just given away.
        let mut ledger = self.ledger();
        for ram in self.layout.ranges().iter().filter(|ram| ram.devices) {
            let Some(pages) = PageRange::touched(ram.offset, ram.gpa.len()) else { continue };
            for run in ledger.writer.runs(pages).filter(|run| run.state == PageState::Shared && !run.converting) {
                let start = ram.gpa.start() + (run.pages.offset() - ram.offset);
                let result = hypervisor::GpaRange::new(start, run.pages.bytes())
                    .map_err(Into::into)
                    .and_then(|range| listener.map(range));
                if let Err(error) = result {
                    self.layout.ranges().iter().for_each(|ram| listener.unmap(ram.gpa));
                    return Err(error);
                }
            }
        }
        ledger.listeners = ledger.listeners.iter().cloned().chain([listener]).collect();
        Ok(())
    }

    /// Takes all memory from a listener. Conversions that are under way may still tell it of their pages, and take away what
    /// they gave it; later ones don't.
    pub fn remove_listener(&self, listener: &Arc<dyn ConversionListener>) {
        let mut ledger = self.ledger();
        ledger.listeners = ledger.listeners.iter().filter(|other| !Arc::ptr_eq(other, listener)).cloned().collect();
        self.layout.ranges().iter().for_each(|ram| listener.unmap(ram.gpa));
    }

    /// Writes to shared memory before the guest runs, to RAM that devices don't get at as well.
    ///
    /// # Errors
    /// Bytes outside RAM, or in private pages.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<()> {
        let refused = || Error::GuestMemory { gpa, size: data.len() };
        let Some((range, _, _)) = self.layout.locate(gpa) else { return Err(refused()) };
        if gpa.checked_add(data.len() as u64).is_none_or(|end| end > self.layout.low_ram_end()) {
            return Err(refused());
        }
        // RAM below 4 GiB is in one piece, in the backing as well.
        let offset = range.backing_offset(gpa);
        let Some(pages) = PageRange::touched(offset, data.len() as u64) else { return Ok(()) };
        let ledger = self.ledger();
        if !ledger.is_firmly_shared(pages) {
            return Err(refused());
        }
        let at = usize::try_from(offset).map_err(|_| refused())?;
        self.shared.mapping().as_volatile_slice().write_slice(data, at).map_err(|_| refused())
    }
}

/// Reports discards that failed.
fn discard_observer(observer: Arc<MemoryObserver>) -> Box<discards::FailureObserver> {
    Box::new(move |pages, side, source| {
        let (offset, size) = (pages.offset(), pages.bytes());
        tracing::warn!("{} (it will be tried again)", crate::error::chain(source));
        observer(&MemoryEvent::DiscardFailed { offset, size, side, source });
    })
}
