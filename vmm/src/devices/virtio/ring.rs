//! A queue as a device works on it: takes chains that the driver made available, hands them back used, and says so.
//!
//! [`Ring::serve`] and [`Ring::serve_while`] are for queues whose requests are handled one after the other; [`Ring::take`],
//! [`Ring::put_back`] and [`Ring::put_used`] are for those who collect chains before they know what goes into them.
//!
//! Guarantees:
//! * A chain is described whatever its shape, at the cost of at most [`MAX_DESCRIPTORS`] descriptors: [`Chain::whole`] says
//!   whether it is as a driver may make it. Nothing of its buffers is touched before a device asks.
//! * One call of [`Ring::serve`] handles at most [`BATCH`] chains, so that other work of the same thread is not kept waiting,
//!   and takes no other chain once the worker is called away, so that pauses and ends wait for one request at the most. It
//!   comes back later for the rest.
//! * A queue that makes no sense, or that lies in private memory, is counted, told once for a device, and left alone until the driver
//!   notifies it again.
//! * A driver that asked not to be interrupted is not, where event indices were agreed on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryResult};

use super::buffers::Buffers;
use super::counter::Counter;
use super::worker::Sources;
use super::{Activation, ActiveQueue, Interrupt};
use crate::memory::guarded::DeviceView;

/// The most descriptors of one chain that are looked at: as many buffers as one system call takes.
pub const MAX_DESCRIPTORS: usize = 1024;

/// The most chains that are handled at a time.
pub const BATCH: usize = 64;

/// A queue that a device works on.
pub struct Ring {
    index: u16,
    queue: Queue,
    notified: OwnedFd,
    interrupt: Arc<dyn Interrupt>,
    faults: Arc<Counter>,
    /// Whether there are used chains that the driver may want to know of.
    unannounced: bool,
}

/// Buffers of a chain: addresses and lengths, nothing of which is checked yet.
#[derive(Debug, Default, Clone)]
pub struct Ranges(VecDeque<(u64, u32)>);

/// A chain of descriptors.
#[derive(Debug)]
pub struct Chain {
    /// What the driver knows it by.
    pub head: u16,
    /// What the device may read.
    pub readable: Ranges,
    /// What the device may write.
    pub writable: Ranges,
    /// Whether the chain has an end, begins with what is readable, and has no buffer that ends beyond all addresses. What it
    /// has is described even if not.
    pub whole: bool,
}

impl Activation {
    /// Takes out the queue of this number, as a ring. `faults` counts what is wrong with it.
    ///
    /// # Errors
    /// The driver has not made that queue ready.
    pub fn take_ring(&mut self, index: u16, faults: &Arc<Counter>) -> io::Result<Ring> {
        let place = self.queues.iter().position(|queue| queue.index == index);
        let place = place.ok_or_else(|| io::Error::other(format!("the driver has not made queue {index} ready")))?;
        Ok(Ring::new(self.queues.swap_remove(place), &self.interrupt, faults))
    }
}

impl Ring {
    /// Takes over a queue. `faults` counts what is wrong with it.
    pub fn new(active: ActiveQueue, interrupt: &Arc<dyn Interrupt>, faults: &Arc<Counter>) -> Self {
        let ActiveQueue { index, queue, notified } = active;
        let ring =
            Self { index, queue, notified, interrupt: interrupt.clone(), faults: faults.clone(), unannounced: false };
        // What the driver made available before anybody listened.
        ring.again();
        ring
    }

    /// Becomes readable when there is work; for a worker to wait for.
    pub fn notified(&self) -> BorrowedFd<'_> {
        self.notified.as_fd()
    }

    /// Handles what is available. `handle` gets each chain, and says how many bytes it wrote into it.
    pub fn serve(&mut self, view: &DeviceView, sources: &Sources, mut handle: impl FnMut(Chain) -> u32) {
        self.serve_while(view, sources, |chain| Some(handle(chain)));
    }

    /// As [`Ring::serve`], until `handle` says `None`: that chain is as if it had not been taken, and whoever said so comes
    /// back for it and those behind it.
    pub fn serve_while(&mut self, view: &DeviceView, sources: &Sources, mut handle: impl FnMut(Chain) -> Option<u32>) {
        self.begin(view);
        for _ in 0..BATCH {
            if sources.is_called_away() {
                break;
            }
            let Some(chain) = self.take(view) else { return self.announce(view) };
            let head = chain.head;
            let Some(written) = handle(chain) else {
                self.put_back(1);
                return self.announce(view);
            };
            self.put_used(view, head, written);
        }
        self.again();
        self.announce(view);
    }

    /// Work begins: the notification is taken, and the driver need not notify until [`Ring::take`] finds nothing more.
    pub fn begin(&mut self, view: &DeviceView) {
        // It may have been taken already.
        let _ = rustix::io::read(&self.notified, &mut [0; 8]);
        if let Err(error) = self.queue.disable_notification(view) {
            self.fault(&error);
        }
    }

    /// The worker shall come back, although the driver does not notify.
    pub fn again(&self) {
        // It can't fail: the counter would have to be at its end, and then it is readable.
        let _ = rustix::io::write(&self.notified, &1u64.to_ne_bytes());
    }

    /// The next chain. Where there is none, the driver notifies when there is one.
    pub fn take(&mut self, view: &DeviceView) -> Option<Chain> {
        if let Some(chain) = self.pop(view) {
            return Some(chain);
        }
        match self.queue.enable_notification(view) {
            // Once: indices that make no sense would be asked for again and again.
            Ok(more) => more.then(|| self.pop(view)).flatten(),
            Err(error) => {
                self.fault(&error);
                None
            }
        }
    }

    fn pop(&mut self, view: &DeviceView) -> Option<Chain> {
        let popped = self.queue.iter(view).map(|mut chains| chains.next());
        match popped {
            Ok(chain) => chain.map(|chain| {
                let head = chain.head_index();
                Chain::describe(head, chain)
            }),
            Err(error) => {
                self.fault(&error);
                None
            }
        }
    }

    /// Makes the last chain that was taken available again. Whoever took several and puts `count` of them back has used none
    /// of these, nor any taken after them.
    pub fn put_back(&mut self, count: usize) {
        for _ in 0..count {
            self.queue.go_to_previous_position();
        }
    }

    /// Hands a chain back to the driver, with so many bytes written.
    pub fn put_used(&mut self, view: &DeviceView, head: u16, written: u32) {
        // A driver may make anything available.
        if head >= self.queue.size() {
            return self.fault(&Error::InvalidDescriptorIndex);
        }
        match self.queue.add_used(view, head, written) {
            Ok(()) => self.unannounced = true,
            Err(error) => self.fault(&error),
        }
    }

    /// Interrupts the guest, if chains were used and the driver wants to know.
    pub fn announce(&mut self, view: &DeviceView) {
        if !std::mem::take(&mut self.unannounced) {
            return;
        }
        match self.queue.needs_notification(view) {
            Ok(true) => self.interrupt.queue_used(self.index),
            Ok(false) => {}
            Err(error) => self.fault(&error),
        }
    }

    fn fault(&mut self, error: &Error) {
        // Once for a device, whose driver may make its queues anew as often as it likes.
        if self.faults.get() == 0 {
            tracing::warn!("queue {} of a device can't be used as the driver made it: {error}", self.index);
        }
        self.faults.add(1);
    }
}

impl Chain {
    fn describe(head: u16, descriptors: impl Iterator<Item = virtio_queue::desc::split::Descriptor>) -> Self {
        // A chain that breaks off ends with a descriptor that has a next one.
        let mut chain = Self { head, readable: Ranges::default(), writable: Ranges::default(), whole: true };
        let mut ended = false;
        for descriptor in descriptors.take(MAX_DESCRIPTORS) {
            let (gpa, length) = (descriptor.addr().0, descriptor.len());
            ended = !descriptor.has_next();
            chain.whole &= gpa.checked_add(length.into()).is_some();
            if descriptor.is_write_only() {
                chain.writable.0.push_back((gpa, length));
            } else {
                chain.whole &= chain.writable.0.is_empty();
                chain.readable.0.push_back((gpa, length));
            }
        }
        chain.whole &= ended;
        chain
    }
}

impl Ranges {
    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.0.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// Takes the first bytes, as many as there are up to `size`.
    pub fn take_first(&mut self, size: u32) -> Self {
        let (mut left, mut first) = (size, VecDeque::new());
        while left > 0
            && let Some((gpa, length)) = self.0.pop_front()
        {
            let part = length.min(left);
            left -= part;
            first.push_back((gpa, part));
            if part < length {
                self.0.push_front((gpa.saturating_add(part.into()), length - part));
            }
        }
        Self(first)
    }

    /// Takes the last byte; `None` if there is none.
    pub fn take_last_byte(&mut self) -> Option<Self> {
        while let Some((gpa, length)) = self.0.pop_back() {
            if let Some(rest) = length.checked_sub(1) {
                self.0.push_back((gpa, rest));
                return Some(Self(VecDeque::from([(gpa.saturating_add(rest.into()), 1)])));
            }
        }
        None
    }

    /// The addresses and lengths.
    pub fn iter(&self) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.0.iter().map(|(gpa, length)| (GuestAddress(*gpa), *length as usize))
    }

    /// Guards all of these bytes, to be touched for as long as the buffers are held.
    ///
    /// # Errors
    /// The refusal of the first that is not shared memory. It was counted and reported.
    pub fn guard<'v>(&self, view: &'v DeviceView) -> GuestMemoryResult<Buffers<'v>> {
        Buffers::guard(view, self.iter())
    }
}
