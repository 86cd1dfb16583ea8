//! Virtio devices on the PCI bus (virtio 1.3, 4.1), without the legacy interface.
//!
//! ```text
//! memory BAR    0x0000  common configuration: Common, the state machine of features, queues and status
//!               0x1000  ISR status           ┐
//!               0x4000  MSI-X table, 0x5000  ┴ Interrupts: which vector a queue has, on Msix
//!               0x2000  the device's own configuration
//!               0x3000  notifications, an address a queue: Notifiers, events that KVM serves by itself
//! ```
//!
//! The driver finds these by capabilities. The last one is a window through which it gets at the BAR by configuration space.
//!
//! The device is activated once the driver says so, with the queues that it has made ready. Each queue's rings are looked at
//! through the guarded view first: rings that are not, as a whole, memory that devices may touch are an error, and the
//! device says that it needs a reset, as it does when it can't be activated for another reason.
//!
//! Guarantees: whatever the driver writes, in any order and width, the device is in a state of the specification's; a
//! function that is dropped has given back its events, interrupt lines and threads.

mod capabilities;
mod common;
mod interrupts;
mod notifiers;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::Vm;
use virtio_queue::{Queue, QueueT};

use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::devices::interrupts::MsiLines;
use crate::devices::pci::Function;
use crate::devices::pci::config_space::ConfigSpace;
use crate::devices::pci::msix::Msix;
use crate::memory::guarded::{DeviceMemory, DeviceView};
use crate::{Error, Result};
use capabilities::Places;
use common::{Change, Common, QueueSettings};
use interrupts::Interrupts;
use notifiers::Notifiers;

/// Features that are the transport's (virtio 1.3, 6).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// See [`RING_INDIRECT_DESC`].
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// See [`RING_INDIRECT_DESC`].
pub const VERSION_1: u64 = 1 << 32;
/// The driver uses addresses that the platform lets devices at: a guest whose RAM is private bounces through shared pages.
pub const ACCESS_PLATFORM: u64 = 1 << 33;

/// Where things lie in the memory BAR.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
/// How far apart they are.
const PART: u64 = 0x1000;
/// Size of the memory BAR.
pub const MEMORY_SIZE: u32 = 0x8000;

/// The most queues: a vector for each and one for the configuration fill the MSI-X table.
const MAX_QUEUES: usize = 255;

/// How often it is told at the most that a device needs a reset: its driver decides how often that happens.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// What a machine offers its devices' transport.
#[derive(Clone)]
pub struct Platform {
    /// The machine.
    pub vm: Arc<dyn Vm>,
    /// Its interrupt lines.
    pub lines: Arc<MsiLines>,
    /// Guest memory as devices may see it.
    pub memory: Arc<DeviceMemory>,
    /// What drivers are told of where devices get at memory.
    pub access_platform: AccessPlatform,
}

/// What drivers are told of [`ACCESS_PLATFORM`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessPlatform {
    /// Nothing: devices get at all memory, by its own addresses.
    Off,
    /// They may accept it, and then see to it themselves that devices get at what they are told of. A driver that does not
    /// know it works as with [`AccessPlatform::Off`].
    Offered,
    /// A driver that does not accept it can't work.
    Required,
}

/// A virtio device as a function of the bus.
pub struct VirtioPci {
    id: String,
    // Fields drop in order: the device first, so that nobody uses the rest any more.
    /// None once it has ended: it is given back then, although an access may still hold the function.
    device: Option<Box<dyn VirtioDevice>>,
    active: Option<Notifiers>,
    config: ConfigSpace,
    places: Places,
    common: Common,
    interrupts: Arc<Interrupts>,
    msix: Arc<Msix>,
    platform: Platform,
    /// When it was told that the device needs a reset.
    told: Option<Instant>,
}

impl VirtioPci {
    /// A device, whose memory BAR is at `base` until the guest moves it.
    ///
    /// # Errors
    /// More queues than the transport has vectors for, or no interrupt lines left.
    pub fn new(id: &str, device: Box<dyn VirtioDevice>, platform: Platform, base: u32) -> Result<Self> {
        let sizes = device.queue_sizes();
        if sizes.len() > MAX_QUEUES {
            return Err(Error::TooManyQueues { id: id.into(), queues: sizes.len(), most: MAX_QUEUES });
        }
        let queues = sizes.len() as u16;
        let msix = Msix::new(&platform.lines, queues + 1)?;
        let (access_offered, access_required) = match platform.access_platform {
            AccessPlatform::Off => (0, 0),
            AccessPlatform::Offered => (ACCESS_PLATFORM, 0),
            AccessPlatform::Required => (ACCESS_PLATFORM, ACCESS_PLATFORM),
        };
        let required = VERSION_1 | access_required;
        let offered = device.features() | required | access_offered | RING_INDIRECT_DESC | RING_EVENT_IDX;
        let (config, places) = capabilities::config_space(device.device_type(), queues, base);
        let interrupts = Arc::new(Interrupts::new(msix.clone(), queues));
        let common = Common::new(offered, required, &sizes);
        let (id, device, active, told) = (id.into(), Some(device), None, None);
        Ok(Self { id, device, active, config, places, common, interrupts, msix, platform, told })
    }

    /// Its name among the machine's devices.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks the device's threads to stand still, and waits for none: for whoever pauses several devices.
    pub fn ask_to_pause(&self) {
        self.device.iter().for_each(|device| device.workers().ask_to_pause());
    }

    /// Asks the device's threads to end, and waits for none: for whoever ends several devices. [`VirtioPci::end`] must follow.
    pub fn ask_to_end(&self) {
        self.device.iter().for_each(|device| device.workers().ask_to_end());
    }

    /// The machine pauses.
    pub fn pause(&mut self) {
        self.device.iter_mut().for_each(|device| device.pause());
    }

    /// The device ends for good: nothing of it works any more, and what it had on the host's side is given back, whatever
    /// accesses are still under way.
    pub fn end(&mut self) {
        self.reset();
        self.device = None;
    }

    /// The machine goes on.
    pub fn resume(&mut self) {
        self.device.iter_mut().for_each(|device| device.resume());
    }

    /// What the device has counted so far, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.device.as_ref().map(|device| device.counters()).unwrap_or_default()
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::None => {}
            Change::Reset => self.reset(),
            Change::Activate => {
                if let Err(error) = self.activate() {
                    let reason = crate::error::chain(&error);
                    if self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
                        self.told = Some(Instant::now());
                        tracing::warn!("{} needs a reset: {reason}", self.id);
                    } else {
                        tracing::debug!("{} needs a reset: {reason}", self.id);
                    }
                    self.stop();
                    self.common.need_reset();
                    super::Interrupt::config_changed(&*self.interrupts);
                }
            }
        }
    }

    fn stop(&mut self) {
        self.device.iter_mut().for_each(|device| device.deactivate());
    }

    fn reset(&mut self) {
        self.stop();
        self.active = None;
        self.common.reset();
        self.interrupts.reset();
    }

    fn activate(&mut self) -> std::result::Result<(), ActivateError> {
        let Some(device) = &mut self.device else { return Ok(()) };
        let view = self.platform.memory.view(&self.id);
        let features = self.common.features();
        let mut notifiers = Notifiers::new(self.platform.vm.clone());
        let mut queues = Vec::new();
        for (index, settings) in self.common.ready_queues() {
            let queue = queue(settings, features & RING_EVENT_IDX != 0, &view)
                .map_err(|source| ActivateError { operation: "use the rings that its driver names", source })?;
            let notified = notifiers
                .add(index)
                .map_err(|source| ActivateError { operation: "create the event of a queue", source })?;
            queues.push(ActiveQueue { index, queue, notified });
        }
        let (memory, interrupt) = (self.platform.memory.clone(), self.interrupts.clone());
        device.activate(Activation { memory, features, queues, interrupt })?;
        notifiers.place(self.config.memory().map(|base| base + NOTIFY));
        // What the driver has made available by now, it may have said already.
        notifiers.notify_all();
        self.active = Some(notifiers);
        Ok(())
    }

    /// Reads the BAR by the capability that is a window to it.
    fn read_window(&mut self) {
        if let Some((offset, size)) = self.places.window(&self.config) {
            let mut data = [0; 4];
            self.read_memory(offset, &mut data[..size]);
            self.places.set_window_data(&mut self.config, data);
        }
    }

    fn write_window(&mut self) {
        if let Some((offset, size)) = self.places.window(&self.config) {
            let data = self.places.window_data(&self.config);
            self.write_memory(offset, &data[..size]);
        }
    }
}

/// The queue that a driver has described, if its rings are memory that devices may touch.
fn queue(settings: &QueueSettings, event_index: bool, view: &DeviceView) -> std::io::Result<Queue> {
    let invalid = |error| std::io::Error::other(format!("{error}"));
    let mut queue = Queue::new(settings.max_size).map_err(invalid)?;
    queue.try_set_size(settings.size).map_err(invalid)?;
    queue.try_set_desc_table_address(vm_memory::GuestAddress(settings.descriptors)).map_err(invalid)?;
    queue.try_set_avail_ring_address(vm_memory::GuestAddress(settings.available)).map_err(invalid)?;
    queue.try_set_used_ring_address(vm_memory::GuestAddress(settings.used)).map_err(invalid)?;
    queue.set_event_idx(event_index);
    queue.set_ready(true);
    if queue.is_valid(view) {
        Ok(queue)
    } else {
        Err(std::io::Error::other(format!(
            "the rings at {:#x}, {:#x} and {:#x} are not all in shared memory",
            settings.descriptors, settings.available, settings.used
        )))
    }
}

impl Function for VirtioPci {
    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        if self.places.touches_window_data(offset, data.len()) {
            self.read_window();
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u8, data: &[u8]) {
        let before = self.config.memory();
        self.config.write(offset, data);
        self.msix.set_control(self.places.msix_control(&self.config));
        if self.places.touches_window_data(offset, data.len()) {
            self.write_window();
        }
        let memory = self.config.memory();
        if memory != before
            && let Some(notifiers) = &mut self.active
        {
            notifiers.place(memory.map(|base| base + NOTIFY));
        }
    }

    fn memory(&self) -> Option<u64> {
        self.config.memory()
    }

    fn memory_size(&self) -> u64 {
        self.config.memory_size()
    }

    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        let within = offset % PART;
        match offset - within {
            COMMON => self.common.read(&self.interrupts, within, data),
            ISR => self.interrupts.read_status(within, data),
            DEVICE => self.device.iter().for_each(|device| device.read_config(within, data)),
            TABLE => self.msix.read_table(within, data),
            PENDING => self.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        let within = offset % PART;
        match offset - within {
            COMMON => {
                let change = self.common.write(&self.interrupts, within, data);
                self.apply(change);
            }
            DEVICE => self.device.iter_mut().for_each(|device| device.write_config(within, data)),
            TABLE => self.msix.write_table(within, data),
            // What KVM doesn't serve: before it was told, or where another function's memory is as well.
            NOTIFY => {
                if let (Some(notifiers), Ok(queue)) = (&self.active, u16::try_from(within / notifiers::STRIDE)) {
                    notifiers.notify(queue);
                }
            }
            _ => {}
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.stop();
        // Whoever still holds the vectors sends nothing any more.
        self.msix.set_control(0);
    }
}
