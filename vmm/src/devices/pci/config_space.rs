//! Configuration space: 256 bytes, and which of their bits a guest may write.
//!
//! A BAR's size is found as on any device: its low bits can't be written, so what is written as all ones reads back as the
//! size (PCI 3.0, 6.2.5.1).

use arch::x86_64::map::{PCI_MEMORY_END, PCI_MEMORY_START};

/// Bytes of the space.
const SIZE: usize = 256;

/// Offsets (PCI 3.0, figure 6-1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Bits of the command register: memory space, bus master, interrupt disable.
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
/// "Capabilities List" of the status register.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Who a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor, and vendor of the subsystem.
    pub vendor: u16,
    /// Device, and subsystem.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class and sub-class.
    pub class: (u8, u8),
}

/// The space.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    memory_size: u32,
    /// Where the last capability's pointer to the next one is, and the first byte that is free.
    last_pointer: usize,
    free: usize,
}

impl ConfigSpace {
    /// A function without memory and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            memory_size: 0,
            last_pointer: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        for at in [0, SUBSYSTEM] {
            space.put(at, &identity.vendor.to_le_bytes());
            space.put(at + 2, &identity.device.to_le_bytes());
        }
        space.bytes[REVISION] = identity.revision;
        space.put(CLASS, &[0, identity.class.1, identity.class.0]);
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Gives it memory of `size` bytes, a power of two of at least 16, at first at `base`, a multiple of it.
    #[must_use]
    pub fn with_memory(mut self, base: u32, size: u32) -> Self {
        debug_assert!(size.is_power_of_two() && size >= 16 && base.is_multiple_of(size));
        self.memory_size = size;
        self.put(BAR0, &base.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
        self
    }

    /// Adds a capability with this body, which follows its number and pointer, and with these bits of it writable; says where
    /// the capability lies. `None` if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let at = self.free.next_multiple_of(4);
        let end = at.checked_add(2 + body.len()).filter(|end| *end <= SIZE)?;
        self.bytes[self.last_pointer] = u8::try_from(at).ok()?;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        for (offset, bits) in writable.iter().take(body.len()).enumerate() {
            self.writable[at + 2 + offset] = *bits;
        }
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        (self.last_pointer, self.free) = (at + 1, end);
        u8::try_from(at).ok()
    }

    /// Reads; what lies beyond the space stays as it is.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(&self.bytes[offset.into()..]) {
            *byte = *value;
        }
    }

    /// Writes what may be written.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for (at, value) in (usize::from(offset)..SIZE).zip(data) {
            self.bytes[at] = self.bytes[at] & !self.writable[at] | value & self.writable[at];
        }
    }

    /// Two bytes as a number; the last byte of the space has none.
    pub fn word(&self, offset: u8) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Four bytes as a number.
    pub fn double_word(&self, offset: u8) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Where its memory is decoded: where the guest has put it, if it has turned it on, and if that is in the window for it.
    pub fn memory(&self) -> Option<u64> {
        let base = self.double_word(BAR0 as u8);
        let inside =
            base >= PCI_MEMORY_START && base.checked_add(self.memory_size).is_some_and(|end| end <= PCI_MEMORY_END);
        let decoded = self.memory_size > 0 && self.word(COMMAND as u8) & COMMAND_MEMORY != 0 && inside;
        decoded.then_some(base.into())
    }

    /// Bytes of its memory.
    pub fn memory_size(&self) -> u64 {
        self.memory_size.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u32 = 0xd000_0000;

    fn space() -> ConfigSpace {
        let identity = Identity { vendor: 0x1af4, device: 0x1044, revision: 1, class: (0xff, 0) };
        ConfigSpace::new(identity).with_memory(BASE, 0x8000)
    }

    #[test]
    fn a_guest_finds_the_size_of_the_memory_and_moves_it() {
        let mut space = space();
        assert_eq!(space.memory(), None, "off at first");
        space.write(0x10, &[0xff; 4]);
        assert_eq!(space.double_word(0x10), 0xffff_8000);
        space.write(0x04, &[0x02]);
        assert_eq!(space.memory(), None, "the end of the address space is not decoded");
        space.write(0x10, &0xd123_4567u32.to_le_bytes());
        assert_eq!(space.memory(), Some(0xd123_0000));
        for (outside, base) in [(true, 0xbfff_8000u32), (false, 0xc000_0000), (false, 0xfebf_8000), (true, 0xfec0_0000)]
        {
            space.write(0x10, &base.to_le_bytes());
            assert_eq!(space.memory().is_none(), outside, "{base:#x}");
        }
        // The other registers are empty: no more memory.
        space.write(0x14, &[0xff; 20]);
        assert_eq!((space.double_word(0x14), space.double_word(0x24)), (0, 0));
    }

    #[test]
    fn capabilities_are_a_list_that_ends() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[]).unwrap();
        let second = space.add_capability(0x11, &[4; 10], &[0, 0x80]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.word(0x06) & 0x10, 0x10);
        assert_eq!((space.word(0x34) & 0xff, space.word(0x40), space.word(0x48)), (0x40, 0x4809, 0x0011));
        space.write(0x48, &[0xff; 12]);
        assert_eq!((space.word(0x48), space.word(0x4a)), (0x0011, 0x8404));
        assert!(space.add_capability(9, &[0; 200], &[]).is_none());
    }

    proptest! {
        /// Whatever is written where, in whatever width: who it is and where its capabilities are stays.
        #[test]
        fn what_may_not_be_written_stays(
            writes in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..9)), 0..40)
        ) {
            let mut space = space();
            let at = space.add_capability(9, &[7; 14], &[0xf0; 14]).unwrap();
            let before = space.bytes;
            for (offset, data) in &writes {
                space.write(*offset, data);
                let mut back = vec![0xff; data.len()];
                space.read(*offset, &mut back);
                if let Some(base) = space.memory() {
                    prop_assert!((0xc000_0000..=0xfec0_0000 - 0x8000).contains(&base) && base % 0x8000 == 0);
                }
            }
            for (index, (now, before)) in space.bytes.iter().zip(before).enumerate() {
                prop_assert_eq!(now & !space.writable[index], before & !space.writable[index], "{:#x}", index);
            }
            prop_assert_eq!(space.word(at), 9);
        }
    }
}
