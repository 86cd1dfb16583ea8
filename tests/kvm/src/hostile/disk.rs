//! A driver of a virtio disk, as decent or as hostile as a test has it (virtio 1.3, sections 4.1 and 5.2).
//!
//! It is this process that knows virtio; each of its accesses is a task of the guest's, so what the device sees is the
//! guest's own: configuration by PCI's ports, registers in the memory of the bus, rings and buffers wherever the test says.
//! Nothing is checked that a driver would check, and pages are converted by the test. There is one request at a time, of
//! three descriptors: header, data, status.
//!
//! The disk is in slot 1, and its registers are where the VMM puts them at first; how they are laid out in there is what its
//! capabilities say, which other tests look at.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use arch::x86_64::map::{PCI_ADDRESS_PORT, PCI_DATA_PORT, PCI_MEMORY_START};
use hypervisor::PageState::{self, Shared};
use vmm::devices::virtio::pci::{ACCESS_PLATFORM, MEMORY_SIZE, VERSION_1};

use super::HostileGuest;
use super::task::Task;

const SLOT: u32 = 1;
const REGISTERS: u64 = PCI_MEMORY_START as u64 + SLOT as u64 * MEMORY_SIZE as u64;
/// The address by which the driver notifies the device of queue 0.
const NOTIFY: u64 = REGISTERS + 0x3000;

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

/// Entries of the queue.
const ENTRIES: u64 = 8;
/// Flags of descriptors (virtio 1.3, 2.7.5).
const NEXT: u64 = 1;
const WRITE: u64 = 2;

/// Requests (virtio 1.3, 5.2.6).
pub const READ: u32 = 0;
/// See [`READ`].
pub const WRITE_OUT: u32 = 1;

/// How a request ended.
pub const OK: u64 = 0;
/// See [`OK`].
pub const ERROR: u64 = 1;
/// What is in the byte for the status before.
pub const UNTOUCHED: u64 = 0xff;

/// The features that the driver takes, those that it has to.
pub const FEATURES_TAKEN: u64 = VERSION_1 | ACCESS_PLATFORM;

/// Where the parts of the queue are.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    /// Descriptors, 128 bytes.
    pub descriptors: u64,
    /// What the driver makes available.
    pub available: u64,
    /// What the device has used.
    pub used: u64,
}

/// An address, and the alias by which the driver itself uses it. The device is told the address alone.
pub type Place = (PageState, u64);

/// A request, for the first sectors of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// [`READ`] or [`WRITE_OUT`].
    pub kind: u32,
    /// Where the header goes.
    pub header: Place,
    /// Where the data is, which the test sees to, and how many bytes.
    pub data: (u64, u32),
    /// The byte for the status.
    pub status: Place,
}

/// The driver.
#[derive(Debug)]
pub struct Driver {
    rings: Rings,
    /// How many requests were made available.
    made: u16,
}

impl Driver {
    /// Resets the device, and tells it everything up to `DRIVER_OK`. Returns the driver and the status that the device is
    /// left in.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn start(guest: &mut HostileGuest, rings: Rings, features: u64) -> anyhow::Result<(Self, u64)> {
        guest.writes_wide_port(PCI_ADDRESS_PORT, 1 << 31 | SLOT << 11 | COMMAND)?;
        guest.writes_wide_port(PCI_DATA_PORT, MEMORY_AND_MASTER)?;
        let mut set = |register, value| guest.sets(register, value);
        set(STATUS, 0)?;
        set(STATUS, ACKNOWLEDGE)?;
        set(STATUS, ACKNOWLEDGE | DRIVER)?;
        for half in [0, 1] {
            set(FEATURE_SELECT, half)?;
            set(FEATURES, features >> (32 * half) & 0xffff_ffff)?;
        }
        set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)?;
        set(QUEUE_SELECT, 0)?;
        set(QUEUE_SIZE, ENTRIES)?;
        set(DESCRIPTORS, rings.descriptors)?;
        set(AVAILABLE, rings.available)?;
        set(USED, rings.used)?;
        set(QUEUE_ENABLE, 1)?;
        set(STATUS, WORKS)?;
        let status = Self::status(guest)?;
        Ok((Self { rings, made: 0 }, status))
    }

    /// The device's status.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn status(guest: &mut HostileGuest) -> anyhow::Result<u64> {
        let (offset, bytes) = STATUS;
        guest.loads((Shared, REGISTERS + offset), bytes)
    }

    /// Makes a request available and notifies the device.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn asks(&mut self, guest: &mut HostileGuest, request: &Request) -> anyhow::Result<()> {
        let ((alias, header), (_, status)) = (request.header, request.status);
        guest.stores((alias, header), 8, request.kind.into())?;
        guest.stores((alias, header + 8), 8, 0)?;
        guest.stores(request.status, 1, UNTOUCHED)?;
        let writable = if request.kind == READ { WRITE } else { 0 };
        self.describes(guest, 0, (header, 16), NEXT)?;
        self.describes(guest, 1, request.data, NEXT | writable)?;
        self.describes(guest, 2, (status, 1), WRITE)?;
        let slot = u64::from(self.made) % ENTRIES;
        guest.stores((Shared, self.rings.available + 4 + 2 * slot), 2, 0)?;
        self.made += 1;
        guest.stores((Shared, self.rings.available + 2), 2, self.made.into())?;
        self.notifies(guest)
    }

    /// Tells the device to look at its queue.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn notifies(&self, guest: &mut HostileGuest) -> anyhow::Result<()> {
        guest.stores((Shared, NOTIFY), 2, 0)
    }

    /// A request to its end. Returns the byte of its status.
    ///
    /// # Errors
    /// A device that does not answer, or a fault of the guest's.
    pub fn does(&mut self, guest: &mut HostileGuest, request: &Request) -> anyhow::Result<u64> {
        self.asks(guest, request)?;
        while self.used(guest)? != self.made {
            ensure!(Instant::now() < guest.deadline, "the disk does not answer {request:x?}");
            sleep(Duration::from_millis(5));
        }
        guest.loads(request.status, 1)
    }

    /// How many requests the device has used.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn used(&self, guest: &mut HostileGuest) -> anyhow::Result<u16> {
        Ok(guest.loads((Shared, self.rings.used + 2), 2)? as u16)
    }

    /// Writes a descriptor; the next one is behind it.
    fn describes(
        &self,
        guest: &mut HostileGuest,
        number: u64,
        (gpa, length): (u64, u32),
        flags: u64,
    ) -> anyhow::Result<()> {
        let at = self.rings.descriptors + 16 * number;
        guest.stores((Shared, at), 8, gpa)?;
        guest.stores((Shared, at + 8), 8, u64::from(length) | flags << 32 | (number + 1) << 48)
    }
}

impl HostileGuest {
    fn sets(&mut self, (offset, bytes): Register, value: u64) -> anyhow::Result<()> {
        self.stores((Shared, REGISTERS + offset), bytes, value)
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
