//! The driver's side of a split virtqueue (virtio 1.3, 2.7).
#![allow(dead_code, reason = "several test programs have it, and none uses all of it")]

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use vmm::devices::virtio::ActiveQueue;

use crate::guest::{Guest, wait_until};

/// VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE and VIRTQ_DESC_F_INDIRECT.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A buffer: address, length, and whether the device may write it.
pub type Buffer = (u64, u32, bool);

/// A descriptor: address, length, flags and the next one.
pub type Descriptor = (u64, u32, u16, u16);

pub struct Queue {
    index: u16,
    size: u16,
    base: u64,
    notify: OwnedFd,
    event_idx: Cell<bool>,
    available: Cell<u16>,
    seen: Cell<u16>,
    /// Descriptors that are free, the next one last.
    free: RefCell<Vec<u16>>,
    /// Descriptors of each chain, by its head.
    chains: RefCell<Vec<Vec<u16>>>,
}

impl Queue {
    pub fn new(index: u16, size: u16, base: u64) -> Self {
        assert!(size <= 1024);
        Self {
            index,
            size,
            base,
            notify: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap(),
            event_idx: Cell::new(false),
            available: Cell::new(0),
            seen: Cell::new(0),
            free: RefCell::new((0..size).rev().collect()),
            chains: RefCell::new(vec![Vec::new(); size.into()]),
        }
    }

    fn ring(&self) -> u64 {
        self.base + 0x4000
    }

    /// Address of the used ring.
    pub fn used(&self) -> u64 {
        self.base + 0x5000
    }

    /// With event indices.
    pub fn with_event_idx(self) -> Self {
        self.event_idx.set(true);
        self
    }

    /// The device's side.
    pub fn active(&self) -> ActiveQueue {
        let mut queue = virtio_queue::Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.ring())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used())).unwrap();
        queue.set_event_idx(self.event_idx.get());
        queue.set_ready(true);
        ActiveQueue { index: self.index, queue, notified: self.notify.try_clone().unwrap() }
    }

    /// The driver resets the queue and begins anew.
    pub fn reset(&self, guest: &Guest) {
        guest.write(self.base, &[0; 0x7000]);
        (self.available.set(0), self.seen.set(0));
        *self.free.borrow_mut() = (0..self.size).rev().collect();
    }

    /// Makes a chain of these buffers available, and returns its head.
    pub fn offer(&self, guest: &Guest, buffers: &[Buffer]) -> u16 {
        let taken: Vec<u16> =
            buffers.iter().map(|_| self.free.borrow_mut().pop().expect("a free descriptor")).collect();
        for (place, (gpa, length, write)) in buffers.iter().enumerate() {
            let next = taken.get(place + 1);
            let flags = if *write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(guest, taken[place], (*gpa, *length, flags, next.copied().unwrap_or(0)));
        }
        let head = taken[0];
        self.chains.borrow_mut()[usize::from(head)] = taken;
        self.make_available(guest, head);
        head
    }

    /// Writes a descriptor into the table, whatever it says.
    pub fn write_descriptor(&self, guest: &Guest, index: u16, (gpa, length, flags, next): Descriptor) {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        guest.write(self.base + 16 * u64::from(index), &bytes);
    }

    /// Makes the chain with this head available, whatever it is.
    pub fn make_available(&self, guest: &Guest, head: u16) {
        let index = self.available.get();
        guest.write(self.ring() + 4 + 2 * u64::from(index % self.size), &head.to_le_bytes());
        self.set_available(guest, index.wrapping_add(1));
    }

    /// Says that so many chains were made available.
    pub fn set_available(&self, guest: &Guest, index: u16) {
        self.available.set(index);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        guest.write(self.ring() + 2, &index.to_le_bytes());
    }

    /// With event indices: after which used chain the driver wants an interrupt.
    pub fn set_used_event(&self, guest: &Guest, index: u16) {
        guest.write(self.ring() + 4 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    pub fn notify(&self) {
        rustix::io::write(&self.notify, &1u64.to_ne_bytes()).unwrap();
    }

    /// How many chains were used since somebody took them.
    pub fn pending(&self, guest: &Guest) -> u16 {
        let bytes = guest.read(self.used() + 2, 2);
        u16::from_le_bytes([bytes[0], bytes[1]]).wrapping_sub(self.seen.get())
    }

    /// The next chain that was used, if there is one: its head, and how many bytes were written.
    pub fn poll(&self, guest: &Guest) -> Option<(u16, u32)> {
        if self.pending(guest) == 0 {
            return None;
        }
        let place = u64::from(self.seen.get() % self.size);
        let bytes = guest.read(self.used() + 4 + 8 * place, 8);
        self.seen.set(self.seen.get().wrapping_add(1));
        let head = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as u16;
        let mut taken = std::mem::take(&mut self.chains.borrow_mut()[usize::from(head)]);
        taken.reverse();
        self.free.borrow_mut().extend(taken);
        Some((head, u32::from_le_bytes(bytes[4..].try_into().unwrap())))
    }

    /// Waits for the next chain that is used.
    #[track_caller]
    pub fn wait(&self, guest: &Guest) -> (u16, u32) {
        wait_until(|| self.pending(guest) > 0);
        self.poll(guest).unwrap()
    }

    /// Makes a chain available, and waits until it was used. Returns how many bytes were written.
    #[track_caller]
    pub fn request(&self, guest: &Guest, buffers: &[Buffer]) -> u32 {
        let head = self.offer(guest, buffers);
        self.notify();
        let (used, written) = self.wait(guest);
        assert_eq!(used, head);
        written
    }
}
