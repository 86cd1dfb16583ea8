//! Virtio devices, whatever carries them to the guest.
//!
//! A device implements [`VirtioDevice`] and knows nothing of its transport. When the guest's driver is ready, the transport
//! hands it an [`Activation`]: the queues, guest memory as devices may see it, and the way to interrupt. From then on the
//! device works on threads of its own ([`worker::Workers`]), until it is deactivated.
//!
//! Guarantees:
//! * [`DeviceMemory`] is a device's only way to guest memory: what it gets here holds no other.
//! * A descriptor that names private memory is an error of that one request, counted and reported, and the device goes on.
//! * After [`VirtioDevice::deactivate`] and after [`VirtioDevice::pause`] no thread of the device touches guest memory.
//!
//! A device can't get past the guarded view, since what it gets has no way to the mapping:
//!
//! ```compile_fail,E0624
//! use vmm::devices::virtio::Activation;
//!
//! fn steal(activation: &Activation) -> *mut u8 {
//!     activation.memory.mapping().as_ptr()
//! }
//! ```
//!
//! nor to a slice of it that outlives its guard:
//!
//! ```compile_fail,E0515
//! use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};
//! use vmm::devices::virtio::Activation;
//! use vmm::memory::guarded::SliceGuard;
//!
//! fn keep<'a>(activation: &'a Activation) -> VolatileSlice<'a, SliceGuard<'a>> {
//!     let view = activation.memory.view("device");
//!     view.get_slices(GuestAddress(0), 8, Permissions::Read).unwrap().next().unwrap().unwrap()
//! }
//! ```

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod console;
pub mod counter;
pub mod net;
pub mod pci;
pub mod ring;
pub mod rng;
mod timer;
pub mod vsock;
pub mod worker;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_queue::Queue;

use crate::memory::guarded::DeviceMemory;
use worker::Workers;

/// A virtio device.
///
/// Methods are called by one thread at a time: the transport's, on behalf of a vCPU, or the device manager's.
pub trait VirtioDevice: Send {
    /// Its device ID (virtio 1.3, section 5).
    fn device_type(&self) -> u32;

    /// The most entries that each of its queues may have, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The features of this kind of device that it offers. The transport adds those that are not the device's own: version 1,
    /// indirect descriptors, event indices, and access to the platform where isolation needs it.
    fn features(&self) -> u64;

    /// The guest reads its configuration. `data` holds zeros; what lies outside of the configuration stays zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The guest writes its configuration. Ignored where there is nothing to write.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready: the device begins to work.
    ///
    /// # Errors
    /// Whatever keeps it from working. The guest sees a device that needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver resets the device, or the device goes: it stops working, and lets go of what it was activated with. Does
    /// nothing if it is not active.
    fn deactivate(&mut self);

    /// The threads that work for it; none if it is not active.
    fn workers(&self) -> &Workers;

    /// The machine pauses: nothing of the guest is touched until [`VirtioDevice::resume`], and nothing is lost.
    fn pause(&mut self) {
        self.workers().pause();
    }

    /// The machine goes on.
    fn resume(&mut self) {
        self.workers().resume();
    }

    /// What it has counted so far, by name.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

/// What a device works with.
pub struct Activation {
    /// Guest memory as devices may see it; make one view for each thread, and name the device in it.
    pub memory: Arc<DeviceMemory>,
    /// The features that device and driver agree on.
    pub features: u64,
    /// The queues that the driver has made ready, each with its number.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the guest.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A queue that the driver has made ready.
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// The queue.
    pub queue: Queue,
    /// An eventfd that becomes readable when the driver has made descriptors available. Never blocks.
    pub notified: OwnedFd,
}

/// How a device interrupts the guest. From any thread, and without waiting.
pub trait Interrupt: Send + Sync {
    /// Descriptors of this queue have been used. The caller has asked the queue whether the driver wants to know.
    fn queue_used(&self, queue: u16);

    /// The device's configuration has changed.
    fn config_changed(&self);
}

/// Why a device does not begin to work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct ActivateError {
    /// What was to be done.
    pub operation: &'static str,
    /// The system's reason.
    #[source]
    pub source: std::io::Error,
}

/// Reads bytes of a configuration, for [`VirtioDevice::read_config`].
pub(crate) fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
    let count = data.len().min(config.len() - start);
    data[..count].copy_from_slice(&config[start..start + count]);
}
