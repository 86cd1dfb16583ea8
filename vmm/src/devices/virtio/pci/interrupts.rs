//! Which vector each queue and the configuration have, the ISR status, and the way of an interrupt.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::Interrupt;
use crate::devices::pci::msix::Msix;

/// VIRTIO_MSI_NO_VECTOR (virtio 1.3, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status (virtio 1.3, 4.1.4.5).
const QUEUE: u8 = 1;
const CONFIGURATION: u8 = 2;

/// A device's interrupts. Its threads trigger them, and a vCPU sets them up.
pub(super) struct Interrupts {
    msix: Arc<Msix>,
    status: AtomicU8,
    generation: AtomicU8,
    vectors: Mutex<Vectors>,
}

struct Vectors {
    config: u16,
    queues: Vec<u16>,
}

impl Interrupts {
    /// Those of a device with so many queues; none has a vector yet. There is one vector more than queues.
    pub(super) fn new(msix: Arc<Msix>, queues: u16) -> Self {
        let vectors = Vectors { config: NO_VECTOR, queues: vec![NO_VECTOR; queues.into()] };
        Self { msix, status: AtomicU8::new(0), generation: AtomicU8::new(0), vectors: Mutex::new(vectors) }
    }

    fn vectors(&self) -> MutexGuard<'_, Vectors> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reset(&self) {
        let mut vectors = self.vectors();
        vectors.config = NO_VECTOR;
        vectors.queues.fill(NO_VECTOR);
        self.status.store(0, Ordering::Release);
    }

    /// Changes with each change of the device's configuration.
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.vectors().config
    }

    /// The vector of a queue, which need not be there.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.vectors().queues.get(usize::from(queue)).copied().unwrap_or(NO_VECTOR)
    }

    /// A vector that is not there reads back as none.
    pub(super) fn set_config_vector(&self, vector: u16) {
        let mut vectors = self.vectors();
        vectors.config = vectors.checked(vector);
    }

    /// The same for a queue, which need not be there.
    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        let mut vectors = self.vectors();
        let vector = vectors.checked(vector);
        if let Some(place) = vectors.queues.get_mut(usize::from(queue)) {
            *place = vector;
        }
    }

    /// The guest reads the ISR status, which empties it.
    pub(super) fn read_status(&self, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(byte) = data.first_mut()
        {
            *byte = self.status.swap(0, Ordering::AcqRel);
        }
    }
}

impl Vectors {
    fn checked(&self, vector: u16) -> u16 {
        if usize::from(vector) <= self.queues.len() { vector } else { NO_VECTOR }
    }
}

impl Interrupt for Interrupts {
    fn queue_used(&self, queue: u16) {
        self.status.fetch_or(QUEUE, Ordering::AcqRel);
        self.msix.trigger(self.queue_vector(queue));
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.status.fetch_or(CONFIGURATION, Ordering::AcqRel);
        self.msix.trigger(self.config_vector());
    }
}
