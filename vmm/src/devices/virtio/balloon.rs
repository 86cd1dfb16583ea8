//! A balloon (virtio 1.3, section 5.5): the guest gives memory back to the host, as much as the operator asks for, and, if it
//! reports free pages, whatever it does not use.
//!
//! It is of use where all memory is shared for good. Elsewhere the host can't take back what it can't see, and guests refuse
//! the driver (Linux `drivers/virtio/virtio_balloon.c` asks for memory that the host may read).
//!
//! Guarantees:
//! * The device has one way to guest memory besides its queues: to give pages back, by the [`ReclaimPages`] that it was made
//!   with. Nothing of them is read or written.
//! * Pages that are given back read as zeros when the guest uses them again; nobody has to tell before.
//! * A request that names no RAM is counted, and those of its pages that are RAM are given back all the same.
//! * A request is for at most [`MAX_PAGES`] pages, a report for at most [`MAX_REPORT`] bytes, so that pauses are prompt.

mod requests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use hypervisor::{GpaRange, PAGE_SIZE};
use rustix::event::epoll::EventFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::counter::{Counter, counters};
use super::ring::Ring;
use super::worker::Workers;
use super::{ActivateError, Activation, Interrupt, VirtioDevice, read_bytes};
use crate::config::BalloonConfig;
use crate::{Error, Result};
use requests::Queues;

/// Features (virtio 1.3, 5.5.3).
pub const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
/// The guest reports pages that it does not use.
pub const VIRTIO_BALLOON_F_PAGE_REPORTING: u32 = 5;

/// Its queues: numbers without those that are not offered (virtio 1.3, 5.5.2).
const INFLATE: u64 = 0;
const DEFLATE: u64 = 1;
const REPORT: u64 = 2;

/// Entries of its queues.
const QUEUE_SIZE: u16 = 128;

/// The most pages of one request: four times what Linux names.
pub const MAX_PAGES: usize = 1024;

/// The most bytes of one report: four times what Linux reports at once, 32 buffers of 4 MiB (`mm/page_reporting.c`).
pub const MAX_REPORT: u64 = 512 << 20;

/// Where the configuration has how many pages the guest has given back.
const ACTUAL: u64 = 4;

/// Gives pages of the guest's back to the host.
pub trait ReclaimPages: Send + Sync {
    /// All RAM, in bytes.
    fn size(&self) -> u64;

    /// Gives back the memory of these pages. They read as zeros afterwards.
    ///
    /// # Errors
    /// Pages that are no RAM, and the system's; what is RAM may have been given back.
    fn reclaim(&self, pages: GpaRange) -> io::Result<()>;
}

/// How large a balloon is to be, and is. Shared by the device and whoever steers it.
pub struct BalloonSize {
    ram: u64,
    /// Pages that the guest is to give back, and has.
    target: AtomicU32,
    actual: AtomicU32,
    /// How to tell the guest, while it listens.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl BalloonSize {
    /// Asks the guest to give back so many bytes in all. Parts of a page are left out.
    ///
    /// # Errors
    /// More than there is.
    pub fn set(&self, bytes: u64) -> Result<()> {
        self.target.store(pages_to_take(bytes, self.ram)?, Ordering::Relaxed);
        // Not under the lock: whoever interrupts may be about to change what is under it.
        let interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
        Ok(())
    }

    /// Bytes that the guest is to give back.
    pub fn target(&self) -> u64 {
        u64::from(self.target.load(Ordering::Relaxed)) * PAGE_SIZE
    }

    /// Bytes that the guest says it has given back.
    pub fn actual(&self) -> u64 {
        u64::from(self.actual.load(Ordering::Relaxed)) * PAGE_SIZE
    }
}

/// How many pages a balloon of so many bytes is to take from a guest with this much RAM.
///
/// # Errors
/// More than there is.
pub fn pages_to_take(bytes: u64, ram: u64) -> Result<u32> {
    let fits = bytes < ram;
    fits.then(|| u32::try_from(bytes / PAGE_SIZE).ok()).flatten().ok_or_else(|| {
        let problem = format!("{bytes} bytes are all of the guest's {ram} or more: ask for less");
        Error::Device { device: "balloon".into(), problem }
    })
}

/// A balloon.
pub struct Balloon {
    config: BalloonConfig,
    size: Arc<BalloonSize>,
    pages: Arc<dyn ReclaimPages>,
    counters: Arc<Counters>,
    workers: Workers,
}

counters! {
    /// What a balloon counts.
    struct Counters {
        /// Bytes that the guest gave back.
        inflated: Counter => "inflated_bytes",
        /// Bytes that it took again.
        deflated: Counter => "deflated_bytes",
        /// Bytes that it reported as free.
        reported: Counter => "reported_bytes",
        /// Requests that failed, for whatever reason.
        failed: Counter => "failed",
        /// Of those, such as named memory that devices may not touch.
        refused: Counter => "refused",
        /// Queues that could not be used as they were.
        queue_faults: Arc<Counter> => "queue_faults",
    }
}

impl Balloon {
    /// A balloon that gives back `pages`.
    ///
    /// # Errors
    /// A size from the start that is more than there is.
    pub fn new(config: &BalloonConfig, pages: Arc<dyn ReclaimPages>) -> Result<Self> {
        let (target, actual) = (AtomicU32::new(0), AtomicU32::new(0));
        let size = BalloonSize { ram: pages.size(), target, actual, interrupt: Mutex::new(None) };
        size.set(config.size)?;
        Ok(Self { config: *config, size: Arc::new(size), pages, counters: Arc::default(), workers: Workers::default() })
    }

    /// How large it is to be, and is; to be kept by whoever steers it.
    pub fn size(&self) -> &Arc<BalloonSize> {
        &self.size
    }

    fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.size.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; if self.config.free_page_reporting { 3 } else { 2 }]
    }

    fn features(&self) -> u64 {
        u64::from(self.config.deflate_on_oom) << VIRTIO_BALLOON_F_DEFLATE_ON_OOM
            | u64::from(self.config.free_page_reporting) << VIRTIO_BALLOON_F_PAGE_REPORTING
    }

    /// As virtio 1.3, 5.5.4 lays it out.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.size.target.load(Ordering::Relaxed).to_le_bytes().to_vec();
        config.extend(self.size.actual.load(Ordering::Relaxed).to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Drivers write the field as a whole.
        if let (ACTUAL, Ok(pages)) = (offset, data.try_into()) {
            self.size.actual.store(u32::from_le_bytes(pages), Ordering::Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let faults = &self.counters.queue_faults;
        let rings = queues.into_iter().map(|active| (active.index.into(), Ring::new(active, &interrupt, faults)));
        let queues = Queues {
            rings: rings.collect(),
            view: memory.view("balloon"),
            pages: self.pages.clone(),
            counters: self.counters.clone(),
        };
        let started = self.workers.start("balloon", queues, |queues, sources| {
            queues.rings.iter().try_for_each(|(number, ring)| sources.add(ring.notified(), *number, EventFlags::IN))
        });
        started.map_err(|source| ActivateError { operation: "start a thread for the balloon", source })?;
        self.set_interrupt(Some(interrupt));
        Ok(())
    }

    fn deactivate(&mut self) {
        self.workers.end();
        self.set_interrupt(None);
        // A guest that begins anew has given nothing back.
        self.size.actual.store(0, Ordering::Relaxed);
    }

    fn workers(&self) -> &Workers {
        &self.workers
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.counters.list();
        counters.extend([("target_bytes", self.size.target()), ("actual_bytes", self.size.actual())]);
        counters
    }
}
