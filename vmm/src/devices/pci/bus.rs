//! The bus: which slot has which function, and the way of the guest's accesses to them.
//!
//! Accesses to different functions go beside each other. An access finds the function whose memory it is in by a look at
//! where each one's is, so a vCPU never waits for a function that it has nothing to do with.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arch::x86_64::map::{PCI_ADDRESS_PORT, PCI_DATA_PORT, PCI_SLOTS};

use super::Function;
use super::host_bridge::HostBridge;

/// Fields of the address register (PCI 3.0, figure 3-2).
const ENABLE: u32 = 1 << 31;
const BUS_AND_FUNCTION: u32 = 0x00ff_0700;
const SLOT_SHIFT: u32 = 11;
const SLOT_MASK: u32 = 0x1f;
const REGISTER_MASK: u32 = 0xfc;

/// No memory is decoded.
const NOWHERE: u64 = u64::MAX;

/// A function that can be shared.
pub type SharedFunction = Arc<Mutex<dyn Function>>;

struct Slot {
    function: SharedFunction,
    /// Where its memory is decoded, as far as anybody has been told.
    memory: AtomicU64,
    memory_size: u64,
}

impl Slot {
    fn new(function: SharedFunction) -> Self {
        let memory_size = lock(&function).memory_size();
        Self { function, memory: AtomicU64::new(NOWHERE), memory_size }
    }

    /// Where in its memory this address is.
    fn offset(&self, gpa: u64) -> Option<u64> {
        let base = self.memory.load(Ordering::Acquire);
        gpa.checked_sub(base).filter(|offset| *offset < self.memory_size)
    }
}

fn lock(function: &SharedFunction) -> MutexGuard<'_, dyn Function + 'static> {
    // A function that panicked is as it was left; no other depends on it.
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bus.
pub struct Bus {
    address: AtomicU32,
    slots: RwLock<[Option<Arc<Slot>>; PCI_SLOTS as usize]>,
}

impl Default for Bus {
    fn default() -> Self {
        let mut slots = [const { None }; PCI_SLOTS as usize];
        slots[0] = Some(Arc::new(Slot::new(Arc::new(Mutex::new(HostBridge::default())))));
        Self { address: AtomicU32::new(0), slots: RwLock::new(slots) }
    }
}

impl Bus {
    /// Puts a function into a slot, and returns what was there.
    pub fn insert(&self, slot: u8, function: SharedFunction) -> Option<SharedFunction> {
        let filled = Arc::new(Slot::new(function));
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let place = slots.get_mut(usize::from(slot))?;
        place.replace(filled).map(|before| before.function.clone())
    }

    /// Takes the function out of a slot. An access that is under way may still hold it.
    pub fn remove(&self, slot: u8) -> Option<SharedFunction> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.get_mut(usize::from(slot))?.take().map(|slot| slot.function.clone())
    }

    fn slot(&self, slot: usize) -> Option<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(slot)?.clone()
    }

    fn find(&self, gpa: u64) -> Option<(Arc<Slot>, u64)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().flatten().find_map(|slot| Some((slot.clone(), slot.offset(gpa)?)))
    }

    /// The function and register that an access to this port of the mechanism is to, if it is one.
    fn target(&self, port: u16, size: usize) -> Option<(Arc<Slot>, u8)> {
        let byte = port.checked_sub(PCI_DATA_PORT)?;
        if !matches!(size, 1 | 2 | 4) || usize::from(byte) + size > 4 {
            return None;
        }
        let address = self.address.load(Ordering::Acquire);
        if address & ENABLE == 0 || address & BUS_AND_FUNCTION != 0 {
            return None;
        }
        let slot = self.slot((address >> SLOT_SHIFT & SLOT_MASK) as usize)?;
        Some((slot, (address & REGISTER_MASK) as u8 + byte as u8))
    }

    /// The guest reads ports of the configuration mechanism. `data` holds all ones.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        if port == PCI_ADDRESS_PORT && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Acquire).to_le_bytes());
        } else if let Some((slot, register)) = self.target(port, data.len()) {
            lock(&slot.function).read_config(register, data);
        }
    }

    /// The guest writes ports of the configuration mechanism. Only all of the address at once is one.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        if port == PCI_ADDRESS_PORT
            && let Ok(bytes) = data.try_into()
        {
            self.address.store(u32::from_le_bytes(bytes), Ordering::Release);
        } else if let Some((slot, register)) = self.target(port, data.len()) {
            let mut function = lock(&slot.function);
            function.write_config(register, data);
            slot.memory.store(function.memory().unwrap_or(NOWHERE), Ordering::Release);
        }
    }

    /// The guest reads where no RAM is. `data` holds all ones, and keeps them where nothing is.
    pub fn read_memory(&self, gpa: u64, data: &mut [u8]) {
        if let Some((slot, offset)) = self.find(gpa) {
            data.fill(0);
            lock(&slot.function).read_memory(offset, data);
        }
    }

    /// The guest writes where no RAM is.
    pub fn write_memory(&self, gpa: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.find(gpa) {
            lock(&slot.function).write_memory(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config_space::{ConfigSpace, Identity};
    use super::*;

    /// Its memory reads as the offset, and keeps the last write.
    struct Probe(ConfigSpace, Written);

    impl Function for Probe {
        fn read_config(&mut self, offset: u8, data: &mut [u8]) {
            self.0.read(offset, data);
        }
        fn write_config(&mut self, offset: u8, data: &[u8]) {
            self.0.write(offset, data);
        }
        fn memory(&self) -> Option<u64> {
            self.0.memory()
        }
        fn memory_size(&self) -> u64 {
            self.0.memory_size()
        }
        fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }
        fn write_memory(&mut self, offset: u64, data: &[u8]) {
            *self.1.lock().unwrap() = Some((offset, data.to_vec()));
        }
    }

    type Written = Arc<Mutex<Option<(u64, Vec<u8>)>>>;

    fn bus() -> (Bus, Written) {
        let identity = Identity { vendor: 0x1af4, device: 0x1044, revision: 1, class: (0xff, 0) };
        let (bus, written) = (Bus::default(), Written::default());
        let probe = Probe(ConfigSpace::new(identity).with_memory(0xc000_0000, 0x1000), written.clone());
        assert!(bus.insert(3, Arc::new(Mutex::new(probe))).is_none());
        (bus, written)
    }

    fn read(bus: &Bus, address: u32, port: u16, size: usize) -> Vec<u8> {
        bus.write_port(0xcf8, &address.to_le_bytes());
        let mut data = vec![0xff; size];
        bus.read_port(port, &mut data);
        data
    }

    #[test]
    fn configuration_goes_by_slot_and_register_in_any_width() {
        let (bus, _) = bus();
        let slot = 1 << 31 | 3 << 11;
        assert_eq!(read(&bus, slot, 0xcfc, 4), [0xf4, 0x1a, 0x44, 0x10]);
        assert_eq!(read(&bus, slot, 0xcfe, 2), [0x44, 0x10]);
        assert_eq!(read(&bus, slot, 0xcff, 1), [0x10]);
        assert_eq!(read(&bus, slot | 0x08, 0xcff, 1), [0xff]);
        assert_eq!(read(&bus, 1 << 31, 0xcfc, 4), [0x36, 0x1b, 0x08, 0x00]);
        // Another bus, another function, an empty slot, not enabled, across the end, and widths that are none.
        for address in [slot | 1 << 16, slot | 1 << 8, 1 << 31 | 4 << 11, 3 << 11] {
            assert_eq!(read(&bus, address, 0xcfc, 4), [0xff; 4], "{address:#x}");
        }
        for (port, size) in [(0xcfd, 4), (0xcff, 2), (0xcfc, 3), (0xcfc, 8), (0xcfc, 4096), (0xcfc, 0)] {
            assert!(read(&bus, slot, port, size).iter().all(|byte| *byte == 0xff), "{port:#x} {size}");
        }
        // The address is written as a whole or not at all, and reads back.
        bus.write_port(0xcf8, &slot.to_le_bytes());
        bus.write_port(0xcfb, &[0]);
        bus.write_port(0xcf8, &[0; 2]);
        let mut back = [0; 4];
        bus.read_port(0xcf8, &mut back);
        assert_eq!(u32::from_le_bytes(back), slot);
    }

    #[test]
    fn memory_is_where_the_guest_puts_it() {
        let (bus, written) = bus();
        let memory = |gpa| {
            let mut data = [0xff; 2];
            bus.read_memory(gpa, &mut data);
            data
        };
        assert_eq!(memory(0xc000_0010), [0xff; 2]);
        bus.write_port(0xcf8, &(1u32 << 31 | 3 << 11 | 4).to_le_bytes());
        bus.write_port(0xcfc, &[2]);
        assert_eq!((memory(0xc000_0010), memory(0xc000_1000)), ([0x10, 0], [0xff; 2]));
        bus.write_port(0xcf8, &(1u32 << 31 | 3 << 11 | 0x10).to_le_bytes());
        bus.write_port(0xcfc, &0xd000_0000u32.to_le_bytes());
        assert_eq!((memory(0xc000_0010), memory(0xd000_0fff)), ([0xff; 2], [0xff, 0]));
        bus.write_memory(0xd000_0020, &[1, 2]);
        assert_eq!(*written.lock().unwrap(), Some((0x20, vec![1, 2])));
        assert!(bus.remove(3).is_some() && bus.remove(3).is_none());
        assert_eq!(memory(0xd000_0010), [0xff; 2]);
    }
}
