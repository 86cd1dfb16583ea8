//! A driver of a virtio disk (virtio 1.3, section 5.2), the only device, in slot 1. There is one request at a time, of three
//! descriptors: header, data, status.

use super::HostileGuest;
use super::virtio::{Device, WRITE};
pub use super::virtio::{FEATURES_TAKEN, NEEDS_RESET, NOT_WITH_THESE_FEATURES, Place, Rings, WORKS};

const SLOT: u32 = 1;

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
pub struct Driver(Device);

impl Driver {
    /// Sets the disk up: see [`Device::start`].
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn start(guest: &mut HostileGuest, rings: Rings, features: u64) -> anyhow::Result<(Self, u64)> {
        let (device, status) = Device::start(guest, SLOT, &[rings], features)?;
        Ok((Self(device), status))
    }

    /// Tells the device to look at its queue.
    ///
    /// # Errors
    /// A fault of the guest's.
    pub fn notifies(&self, guest: &mut HostileGuest) -> anyhow::Result<()> {
        self.0.notifies(guest, 0)
    }

    /// A request to its end. Returns the byte of its status.
    ///
    /// # Errors
    /// A device that does not answer, or a fault of the guest's.
    pub fn does(&mut self, guest: &mut HostileGuest, request: &Request) -> anyhow::Result<u64> {
        let ((alias, header), (_, status)) = (request.header, request.status);
        guest.stores((alias, header), 8, request.kind.into())?;
        guest.stores((alias, header + 8), 8, 0)?;
        guest.stores(request.status, 1, UNTOUCHED)?;
        let writable = if request.kind == READ { WRITE } else { 0 };
        let (data, length) = request.data;
        self.0.offers(guest, 0, 0, &[(header, 16, 0), (data, length, writable), (status, 1, WRITE)])?;
        self.0.has_used_all(guest, 0)?;
        guest.loads(request.status, 1)
    }
}
