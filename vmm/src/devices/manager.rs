//! The devices on the machine's PCI bus: those that it starts with, and those that come and go while it runs.
//!
//! A device that comes while the guest runs is put into a free slot, and the guest is told ([`events`]). One that is to go
//! stays, and works, until the guest has let go of it: only then the slot is free, and all that the device had is given back
//! (threads, descriptors, interrupt lines). A guest that never lets go keeps its device; asked again, it is told again. What
//! a guest lets go of that nobody asked for stays where it is.
//!
//! Names are the operator's, or made up as Cloud Hypervisor does: `_disk0`, `_net1`.

mod build;
mod events;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::x86_64::map::{PCI_MEMORY_START, PCI_SLOTS};
use hypervisor::Vm;

use super::interrupts::MsiLines;
use super::pci::Bus;
use super::virtio::VirtioDevice;
use super::virtio::console::ConsoleInput;
use super::virtio::pci::{MEMORY_SIZE, Platform, VirtioPci};
use crate::config::{DiskConfig, NetConfig, VmConfig};
use crate::memory::guarded::DeviceMemory;
use crate::{Error, Result};
use build::Wanted;
use events::Events;

/// A device of the machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedDevice {
    /// Its name.
    pub id: String,
    /// Where it is on the bus: `0000:00:06.0`.
    pub bdf: String,
}

/// All devices on the bus.
pub struct DeviceManager {
    bus: Bus,
    platform: Platform,
    events: Events,
    inventory: Mutex<Inventory>,
}

#[derive(Default)]
struct Inventory {
    /// By slot.
    devices: BTreeMap<u8, Entry>,
    /// How many names were made up so far.
    made_up: u64,
}

struct Entry {
    id: String,
    function: Arc<Mutex<VirtioPci>>,
    /// The guest was asked to let go of it.
    leaving: bool,
}

impl Entry {
    fn function(&self) -> MutexGuard<'_, VirtioPci> {
        // A function that panicked is as it was left; no other depends on it.
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceManager {
    /// A bus without devices. Drivers have to use `access_platform` where devices can't get at all of the guest's memory.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn new(vm: Arc<dyn Vm>, memory: Arc<DeviceMemory>, access_platform: bool) -> Result<Arc<Self>> {
        let events = Events::new(&*vm)?;
        let platform = Platform { lines: MsiLines::new(vm.clone()), vm, memory, access_platform };
        Ok(Arc::new(Self { bus: Bus::default(), platform, events, inventory: Mutex::default() }))
    }

    /// Adds the devices that a machine starts with.
    ///
    /// # Errors
    /// A device that can't be had, such as a disk without its file.
    pub fn add_configured(&self, config: &VmConfig) -> Result<()> {
        for wanted in build::configured(config) {
            self.insert(wanted)?;
        }
        Ok(())
    }

    /// Adds the console that a machine starts with.
    ///
    /// # Errors
    /// As [`DeviceManager::add`].
    pub fn add_console(&self, output: Box<dyn Write + Send>, input: Arc<ConsoleInput>) -> Result<()> {
        self.insert(Wanted::console(output, input)).map(|_| ())
    }

    /// Adds a disk while the guest runs.
    ///
    /// # Errors
    /// An image that can't be used, and as [`DeviceManager::add`].
    pub fn add_disk(&self, config: DiskConfig) -> Result<AddedDevice> {
        self.plug(Wanted::disk(config))
    }

    /// Adds a network device while the guest runs.
    ///
    /// # Errors
    /// A tap that can't be had, and as [`DeviceManager::add`].
    pub fn add_net(&self, config: NetConfig) -> Result<AddedDevice> {
        self.plug(Wanted::net(config))
    }

    /// Adds any device while the guest runs, under this name or, where there is none, one that `kind` begins: `disk`.
    ///
    /// # Errors
    /// A name that is taken, no slot or interrupt line left.
    pub fn add(&self, kind: &str, id: Option<&str>, device: Box<dyn VirtioDevice>) -> Result<AddedDevice> {
        self.plug(Wanted::new(kind, id.map(str::to_owned), |_| Ok(device)))
    }

    /// Adds a device and tells the guest.
    fn plug(&self, wanted: Wanted<'_>) -> Result<AddedDevice> {
        let (slot, added) = self.insert(wanted)?;
        self.events.filled(slot);
        Ok(added)
    }

    fn insert(&self, wanted: Wanted<'_>) -> Result<(u8, AddedDevice)> {
        let mut inventory = self.inventory();
        let slots = 1..PCI_SLOTS;
        let free = slots.clone().find(|slot| !inventory.devices.contains_key(slot));
        let slot = free.ok_or(Error::NoSlot { slots: slots.end - slots.start })?;
        let id = match wanted.id {
            Some(id) => inventory.check_name(id)?,
            None => inventory.make_up_name(wanted.kind),
        };
        let base = PCI_MEMORY_START + u32::from(slot) * MEMORY_SIZE;
        let function = VirtioPci::new(&id, (wanted.make)(&id)?, self.platform.clone(), base)?;
        let function = Arc::new(Mutex::new(function));
        self.bus.insert(slot, function.clone());
        let added = AddedDevice { id: id.clone(), bdf: bdf(slot) };
        inventory.devices.insert(slot, Entry { id, function, leaving: false });
        Ok((slot, added))
    }

    /// Asks the guest to let go of a device, which is gone once it has.
    ///
    /// # Errors
    /// No such device.
    pub fn remove(&self, id: &str) -> Result<()> {
        let mut inventory = self.inventory();
        let found = inventory.devices.iter_mut().find(|(_, entry)| entry.id == id);
        let Some((slot, entry)) = found else {
            let devices = inventory.names().collect::<Vec<_>>().join(", ");
            return Err(Error::NoSuchDevice { id: id.into(), devices });
        };
        entry.leaving = true;
        self.events.leaving(*slot);
        Ok(())
    }

    /// Says how much the balloon is to take from the guest, in bytes.
    ///
    /// # Errors
    /// A machine without a balloon.
    pub fn set_balloon(&self, _bytes: u64) -> Result<()> {
        // MERGE: the balloon's own, once it is there.
        Err(Error::NoBalloon)
    }

    /// Pushes the power button, which asks the guest to power off.
    ///
    /// # Errors
    /// None so far.
    pub fn power_button(&self) -> Result<()> {
        self.events.power_button();
        Ok(())
    }

    /// Comes back when no device touches guest memory any more. The vCPUs stand still already.
    pub fn pause(&self) {
        self.inventory().devices.values().for_each(|entry| entry.function().pause());
    }

    /// Lets devices go on.
    pub fn resume(&self) {
        self.inventory().devices.values().for_each(|entry| entry.function().resume());
    }

    /// What each device has counted so far, by its name.
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        let counters = |entry: &Entry| (entry.id.clone(), entry.function().counters().into_iter().collect());
        self.inventory().devices.values().map(counters).collect()
    }

    /// All devices, by their slots. One that is to go is among them until it is gone.
    pub fn list(&self) -> Vec<AddedDevice> {
        let device = |(slot, entry): (&u8, &Entry)| AddedDevice { id: entry.id.clone(), bdf: bdf(*slot) };
        self.inventory().devices.iter().map(device).collect()
    }

    /// The bus, for the guest's accesses to it.
    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The guest reads an event register.
    pub(super) fn read_events(&self, port: u16, data: &mut [u8]) {
        self.events.read(port, data);
    }

    /// The guest writes an event register.
    pub(super) fn write_events(&self, port: u16, data: &[u8]) {
        self.events.write(port, data).for_each(|slot| self.let_go(slot));
    }

    /// The guest has let go of the device in a slot.
    fn let_go(&self, slot: u8) {
        let mut inventory = self.inventory();
        if !inventory.devices.get(&slot).is_some_and(|entry| entry.leaving) {
            tracing::debug!("the guest lets go of slot {slot}, which nobody asked for");
            return;
        }
        self.bus.remove(slot);
        self.events.gone(slot);
        let entry = inventory.devices.remove(&slot);
        // It may take its time to end: others need not wait for that.
        drop(inventory);
        drop(entry);
    }

    fn inventory(&self) -> MutexGuard<'_, Inventory> {
        // It is whole between any two statements.
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inventory {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.values().map(|entry| entry.id.as_str())
    }

    fn check_name(&self, id: String) -> Result<String> {
        let reason = if id.is_empty() {
            "it is empty"
        } else if self.names().any(|name| name == id) {
            "another device has it"
        } else {
            return Ok(id);
        };
        Err(Error::DeviceName { id, reason })
    }

    fn make_up_name(&mut self, kind: &str) -> String {
        loop {
            let name = format!("_{kind}{}", self.made_up);
            self.made_up += 1;
            if self.names().all(|other| other != name) {
                return name;
            }
        }
    }
}

/// Where a slot is, as Linux writes it.
fn bdf(slot: u8) -> String {
    format!("0000:00:{slot:02x}.0")
}
