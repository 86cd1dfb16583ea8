//! A split virtqueue, as a driver makes it: past all guards.

use hypervisor::PAGE_SIZE;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileMemory};

use crate::memory::Memory;

/// A descriptor: address, length, flags and the next one.
pub type Made = (u64, u32, u16, u16);

/// A queue whose rings lie at the start of RAM, each on pages of its own.
pub struct Ring {
    size: u16,
}

impl Ring {
    pub const fn new(size: u16) -> Self {
        Self { size }
    }

    /// The first page behind the descriptors and behind the two rings.
    pub fn borders(&self) -> [u64; 3] {
        let size = u64::from(self.size);
        let table = (size * 16).div_ceil(PAGE_SIZE);
        let available = table + (size * 2 + 6).div_ceil(PAGE_SIZE);
        [table, available, available + (size * 8 + 6).div_ceil(PAGE_SIZE)]
    }

    pub fn used(&self) -> GuestAddress {
        GuestAddress(self.borders()[1] * PAGE_SIZE)
    }

    fn available(&self) -> GuestAddress {
        GuestAddress(self.borders()[0] * PAGE_SIZE)
    }

    /// The device's side.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_avail_ring_address(self.available()).unwrap();
        queue.try_set_used_ring_address(self.used()).unwrap();
        queue.set_ready(true);
        queue
    }

    /// Writes these descriptors, and makes the chain that begins with the first one available.
    pub fn offer(&self, memory: &Memory, descriptors: &[Made]) {
        let ram = memory.backing.mapping().as_volatile_slice();
        for (index, (address, length, flags, next)) in descriptors.iter().enumerate() {
            let descriptor = RawDescriptor::from(Descriptor::new(*address, *length, *flags, *next));
            ram.write_obj(descriptor, index * size_of::<RawDescriptor>()).unwrap();
        }
        let available = self.available().0 as usize;
        let index: u16 = ram.read_obj(available + 2).unwrap();
        ram.write_obj(0u16, available + 4 + 2 * usize::from(index % self.size)).unwrap();
        ram.write_obj(index + 1, available + 2).unwrap();
    }
}
