//! A driver of any virtio device, as decent or as hostile as a test has it (virtio 1.3, sections 2.7 and 4.1).
//!
//! It is this process that knows virtio; each of its accesses is a task of the guest's, so what the device sees is the
//! guest's own: configuration by PCI's ports, registers in the memory of the bus, rings and buffers wherever the test says.
//! Nothing is checked that a driver would check, and pages are converted by the test.
//!
//! A device's registers are where the VMM puts them at first, by its slot; how they are laid out in there is what its
//! capabilities say, which other tests look at.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use arch::x86_64::map::{PCI_ADDRESS_PORT, PCI_DATA_PORT, PCI_MEMORY_START};
use hypervisor::PageState::{self, Shared};
use vmm::devices::virtio::pci::{ACCESS_PLATFORM, MEMORY_SIZE, RING_INDIRECT_DESC, VERSION_1};

use super::HostileGuest;
use super::task::Task;

/// Where in its registers the driver notifies the device of a queue, and how far apart that is for the queues.
const NOTIFY: u64 = 0x3000;
const NOTIFY_STRIDE: u64 = 4;

/// PCI's command register, and its bits that turn memory and bus mastering on (PCI 3.0, 6.2.2).
const COMMAND: u32 = 0x04;
const MEMORY_AND_MASTER: u32 = 6;

/// Registers of the common configuration (virtio 1.3, 4.1.4.3): offset and size.
type Register = (u64, u8);
const FEATURE_SELECT: Register = (8, 4);
const FEATURES: Register = (12, 4);
const STATUS: Register = (20, 1);
const QUEUE_SELECT: Register = (22, 2);
const QUEUE_SIZE: Register = (24, 2);
const QUEUE_ENABLE: Register = (28, 2);
const DESCRIPTORS: Register = (32, 8);
const AVAILABLE: Register = (40, 8);
const USED: Register = (48, 8);

/// Bits of the status (virtio 1.3, 2.1).
const ACKNOWLEDGE: u64 = 1;
const DRIVER: u64 = 2;
const DRIVER_OK: u64 = 4;
const FEATURES_OK: u64 = 8;
/// A device that works.
pub const WORKS: u64 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
/// A device that does not get on with these features.
pub const NOT_WITH_THESE_FEATURES: u64 = ACKNOWLEDGE | DRIVER;
/// A device that must be reset.
pub const NEEDS_RESET: u64 = WORKS | 0x40;

/// Entries of each queue.
pub const ENTRIES: u16 = 8;
/// Flags of descriptors (virtio 1.3, 2.7.5).
pub const NEXT: u16 = 1;
/// See [`NEXT`].
pub const WRITE: u16 = 2;
/// See [`NEXT`].
pub const INDIRECT: u16 = 4;

/// The features that a driver has to take.
pub const FEATURES_TAKEN: u64 = VERSION_1 | ACCESS_PLATFORM;
/// The same, and tables of descriptors elsewhere.
pub const WITH_INDIRECT: u64 = FEATURES_TAKEN | RING_INDIRECT_DESC;

/// Where the parts of a queue are.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    /// Descriptors, 128 bytes.
    pub descriptors: u64,
    /// What the driver makes available.
    pub available: u64,
    /// What the device has used.
    pub used: u64,
}

impl Rings {
    /// All parts of it from this address on, in [`Rings::SIZE`] bytes.
    pub const fn at(gpa: u64) -> Self {
        Self { descriptors: gpa, available: gpa + 0x200, used: gpa + 0x400 }
    }

    /// See [`Rings::at`].
    pub const SIZE: u64 = 0x600;
}

/// An address, and the alias by which the driver itself uses it. The device is told the address alone.
pub type Place = (PageState, u64);

/// A descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// The address of the buffer.
    pub gpa: u64,
    /// Its bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next one.
    pub next: u16,
}

/// A device, as its driver has set it up.
#[derive(Debug)]
pub struct Device {
    registers: u64,
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    rings: Rings,
    /// How many chains were made available.
    made: u16,
}

impl Device {
    /// Resets the device in a slot, and tells it everything up to `DRIVER_OK`. Returns it and the status that it is left in.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn start(guest: &mut HostileGuest, slot: u32, rings: &[Rings], features: u64) -> anyhow::Result<(Self, u64)> {
        guest.writes_wide_port(PCI_ADDRESS_PORT, 1 << 31 | slot << 11 | COMMAND)?;
        guest.writes_wide_port(PCI_DATA_PORT, MEMORY_AND_MASTER)?;
        let registers = u64::from(PCI_MEMORY_START) + u64::from(slot * MEMORY_SIZE);
        let mut set = |(offset, bytes): Register, value| guest.stores((Shared, registers + offset), bytes, value);
        set(STATUS, 0)?;
        set(STATUS, ACKNOWLEDGE)?;
        set(STATUS, ACKNOWLEDGE | DRIVER)?;
        for half in [0, 1] {
            set(FEATURE_SELECT, half)?;
            set(FEATURES, features >> (32 * half) & 0xffff_ffff)?;
        }
        set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)?;
        for (number, rings) in (0..).zip(rings) {
            set(QUEUE_SELECT, number)?;
            set(QUEUE_SIZE, ENTRIES.into())?;
            set(DESCRIPTORS, rings.descriptors)?;
            set(AVAILABLE, rings.available)?;
            set(USED, rings.used)?;
            set(QUEUE_ENABLE, 1)?;
        }
        set(STATUS, WORKS)?;
        let queues = rings.iter().map(|rings| Queue { rings: *rings, made: 0 }).collect();
        let device = Self { registers, queues };
        let status = device.status(guest)?;
        Ok((device, status))
    }

    /// Its status.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn status(&self, guest: &mut HostileGuest) -> anyhow::Result<u64> {
        let (offset, bytes) = STATUS;
        guest.loads((Shared, self.registers + offset), bytes)
    }

    /// Writes a descriptor of a queue.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn describes(
        &self,
        guest: &mut HostileGuest,
        queue: usize,
        number: u16,
        descriptor: Descriptor,
    ) -> anyhow::Result<()> {
        guest.stores_descriptor(self.queues[queue].rings.descriptors, number, descriptor)
    }

    /// Makes available a chain that begins with this descriptor.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn makes_available(&mut self, guest: &mut HostileGuest, queue: usize, head: u16) -> anyhow::Result<()> {
        let Queue { rings, made } = &mut self.queues[queue];
        guest.stores((Shared, rings.available + 4 + 2 * u64::from(*made % ENTRIES)), 2, head.into())?;
        self.claims_available(guest, queue, 1)
    }

    /// Says that so many more chains are available.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn claims_available(&mut self, guest: &mut HostileGuest, queue: usize, more: u16) -> anyhow::Result<()> {
        let Queue { rings, made } = &mut self.queues[queue];
        *made = made.wrapping_add(more);
        guest.stores((Shared, rings.available + 2), 2, (*made).into())
    }

    /// Tells the device to look at a queue.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn notifies(&self, guest: &mut HostileGuest, queue: usize) -> anyhow::Result<()> {
        guest.stores((Shared, self.registers + NOTIFY + NOTIFY_STRIDE * queue as u64), 2, queue as u64)
    }

    /// Makes available a chain of these buffers, whose flags say only whether the device may write, with the descriptors
    /// from `head` on, and notifies the device. Returns how many chains were made available so far.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn offers(
        &mut self,
        guest: &mut HostileGuest,
        queue: usize,
        head: u16,
        buffers: &[(u64, u32, u16)],
    ) -> anyhow::Result<u16> {
        let last = buffers.len().saturating_sub(1);
        for (index, (number, (gpa, length, flags))) in (head..).zip(buffers).enumerate() {
            let next = if index == last { 0 } else { NEXT };
            let descriptor = Descriptor { gpa: *gpa, length: *length, flags: flags | next, next: number + 1 };
            self.describes(guest, queue, number, descriptor)?;
        }
        self.makes_available(guest, queue, head)?;
        self.notifies(guest, queue)?;
        Ok(self.queues[queue].made)
    }

    /// How many chains of a queue the device has used.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn used(&self, guest: &mut HostileGuest, queue: usize) -> anyhow::Result<u16> {
        Ok(guest.loads((Shared, self.queues[queue].rings.used + 2), 2)? as u16)
    }

    /// Waits until the device has used all chains of a queue. Returns which the last one was, and how many bytes were written
    /// to it, as the device says.
    ///
    /// # Errors
    /// A device that does not, or a fault of the guest's.
    pub fn has_used_all(&self, guest: &mut HostileGuest, queue: usize) -> anyhow::Result<(u64, u64)> {
        let Queue { rings, made } = &self.queues[queue];
        while self.used(guest, queue)? != *made {
            ensure!(Instant::now() < guest.deadline, "the device does not use what queue {queue} has");
            sleep(Duration::from_millis(5));
        }
        let at = rings.used + 4 + 8 * u64::from(made.wrapping_sub(1) % ENTRIES);
        Ok((guest.loads((Shared, at), 4)?, guest.loads((Shared, at + 4), 4)?))
    }
}

impl HostileGuest {
    /// Writes a descriptor into a table.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn stores_descriptor(&mut self, table: u64, number: u16, descriptor: Descriptor) -> anyhow::Result<()> {
        let Descriptor { gpa, length, flags, next } = descriptor;
        let at = table + 16 * u64::from(number);
        self.stores((Shared, at), 8, gpa)?;
        self.stores((Shared, at + 8), 8, u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48)
    }

    /// Writes bytes, whole words of them at a time.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn stores_bytes(&mut self, (alias, gpa): Place, bytes: &[u8]) -> anyhow::Result<()> {
        for (at, part) in (gpa..).step_by(8).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.stores((alias, at), 8, u64::from_le_bytes(word))?;
        }
        Ok(())
    }

    /// Writes 1, 2, 4 or 8 bytes in one access.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn stores(&mut self, (alias, gpa): Place, bytes: u8, value: u64) -> anyhow::Result<()> {
        self.done(&Task::Store { alias, gpa, bytes, value }).map(drop)
    }

    /// Reads 1, 2, 4 or 8 bytes in one access.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn loads(&mut self, (alias, gpa): Place, bytes: u8) -> anyhow::Result<u64> {
        self.done(&Task::Load { alias, gpa, bytes }).map(|[value, _]| value)
    }
}
