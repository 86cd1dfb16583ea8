//! The devices on the machine's PCI bus: those that it starts with, and those that come and go while it runs.
//!
//! A device that comes while the guest runs is put into a free slot, and the guest is told (`events`). One that is to go
//! stays, and works, until the guest has let go of it: only then all that the device had is given back (threads, descriptors,
//! interrupt lines), and after that the slot and the name are free. A guest that never lets go keeps its device; asked again, it is told again. What
//! a guest lets go of that nobody asked for stays where it is. That a device which was to go is gone is told to the event
//! monitor, and then only, whether the guest has let go of it or has ended: from then on the host may use what it had.
//!
//! Making a device, pausing or ending one may take its time (a file system that hangs, a slow disk). Nobody waits for that who
//! wants something of another device: the inventory is locked for looks at it only, and a device that is being made has its
//! slot and its name reserved.
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
use serde_json::json;

use super::interrupts::MsiLines;
use super::pci::Bus;
use super::virtio::VirtioDevice;
use super::virtio::balloon::{Balloon, BalloonSize, ReclaimPages};
use super::virtio::console::ConsoleInput;
use super::virtio::pci::{AccessPlatform, MEMORY_SIZE, Platform, VirtioPci};
use crate::config::{BalloonConfig, DEVICE_SLOTS, DiskConfig, NetConfig, VmConfig, VsockConfig};
use crate::events::EventMonitor;
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
    monitor: Arc<EventMonitor>,
    inventory: Mutex<Inventory>,
    /// The balloon's name, and how it is steered.
    balloon: Mutex<Option<(String, Arc<BalloonSize>)>>,
}

#[derive(Default)]
struct Inventory {
    /// By slot.
    devices: BTreeMap<u8, Entry>,
    /// The names of devices that are being made, by the slots that they will be in.
    reserved: BTreeMap<u8, String>,
    /// How many names were made up so far.
    made_up: u64,
    /// The machine has ended.
    ended: bool,
}

struct Entry {
    id: String,
    function: Arc<Mutex<VirtioPci>>,
    stage: Stage,
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Staying,
    /// The guest was asked to let go of it.
    Leaving,
    /// The guest has let go of it, and it is about to end.
    Ending,
}

fn lock(function: &Mutex<VirtioPci>) -> MutexGuard<'_, VirtioPci> {
    // A function that panicked is as it was left; no other depends on it.
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceManager {
    /// A bus without devices. `access_platform` is required where devices can't get at all of the guest's memory; `monitor` is
    /// told of removals.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn new(
        vm: Arc<dyn Vm>,
        memory: Arc<DeviceMemory>,
        access_platform: AccessPlatform,
        monitor: Arc<EventMonitor>,
    ) -> Result<Arc<Self>> {
        let events = Events::new(&*vm)?;
        let platform = Platform { lines: MsiLines::new(vm.clone()), vm, memory, access_platform };
        Ok(Arc::new(Self {
            bus: Bus::default(),
            platform,
            events,
            monitor,
            inventory: Mutex::default(),
            balloon: Mutex::default(),
        }))
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

    /// Adds the console that a machine starts with, and returns where its input is put.
    ///
    /// # Errors
    /// As [`DeviceManager::add`].
    pub fn add_console(&self, output: Box<dyn Write + Send>) -> Result<Arc<ConsoleInput>> {
        let input = ConsoleInput::new()?;
        self.insert(Wanted::console(output, input.clone()))?;
        Ok(input)
    }

    /// Adds the balloon that a machine starts with, which gives back `pages`. A machine has at most one, and none whose memory
    /// is unmappable ([`VmConfig::resolve`]).
    ///
    /// # Errors
    /// As [`DeviceManager::add`].
    pub fn add_balloon(&self, config: &BalloonConfig, pages: Arc<dyn ReclaimPages>) -> Result<()> {
        let balloon = Balloon::new(config, pages)?;
        let size = balloon.size().clone();
        let (_, added) = self.insert(Wanted::balloon(balloon))?;
        // A second one would be as good a balloon, and nobody would steer it.
        self.balloon().get_or_insert((added.id, size));
        Ok(())
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

    /// Adds a socket device while the guest runs.
    ///
    /// # Errors
    /// A socket that can't be had, and as [`DeviceManager::add`].
    pub fn add_vsock(&self, config: VsockConfig) -> Result<AddedDevice> {
        self.plug(Wanted::vsock(config))
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
        let Wanted { kind, id, make } = wanted;
        let (slot, id) = self.inventory().reserve(kind, id)?;
        let reservation = Reservation { manager: self, slot };
        let base = PCI_MEMORY_START + u32::from(slot) * MEMORY_SIZE;
        let function = VirtioPci::new(&id, make(&id)?, self.platform.clone(), base)?;
        let function = Arc::new(Mutex::new(function));
        let mut inventory = self.inventory();
        if inventory.ended {
            // The device first, then the reservation, which takes the lock.
            drop(inventory);
            return Err(Error::Ended);
        }
        self.bus.insert(slot, function.clone());
        let added = AddedDevice { id: id.clone(), bdf: bdf(slot) };
        inventory.devices.insert(slot, Entry { id, function, stage: Stage::Staying });
        drop(inventory);
        drop(reservation);
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
            let names = inventory.devices.values().map(|entry| entry.id.as_str());
            let devices = names.collect::<Vec<_>>().join(", ");
            return Err(Error::NoSuchDevice { id: id.into(), devices });
        };
        if entry.stage != Stage::Ending {
            entry.stage = Stage::Leaving;
            self.events.leaving(*slot);
        }
        Ok(())
    }

    /// Says how much the balloon is to take from the guest, in bytes.
    ///
    /// # Errors
    /// A machine without a balloon, or more than the guest has.
    pub fn set_balloon(&self, bytes: u64) -> Result<()> {
        let balloon = self.balloon().as_ref().map(|(_, size)| size.clone());
        balloon.ok_or(Error::NoBalloon)?.set(bytes)
    }

    /// Bytes that the guest says the balloon has taken from it; zero without a balloon.
    pub fn balloon_size(&self) -> u64 {
        self.balloon().as_ref().map_or(0, |(_, size)| size.actual())
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
        let functions = self.functions();
        // All are asked before one is waited for: whoever is not asked takes up more meanwhile.
        functions.values().for_each(|function| lock(function).ask_to_pause());
        functions.values().for_each(|function| lock(function).pause());
    }

    /// Lets devices go on.
    pub fn resume(&self) {
        self.functions().values().for_each(|function| lock(function).resume());
    }

    /// The machine has ended: all devices are gone, with all that they had.
    pub fn end(&self) {
        let mut inventory = self.inventory();
        inventory.ended = true;
        let devices = std::mem::take(&mut inventory.devices);
        drop(inventory);
        self.events.end();
        // As for a pause.
        devices.values().for_each(|entry| lock(&entry.function).ask_to_end());
        for (slot, entry) in devices {
            self.bus.remove(slot);
            lock(&entry.function).end();
            if entry.stage != Stage::Staying {
                self.tell_removed(&entry.id);
            }
        }
    }

    /// What each device has counted so far, by its name.
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        let counters = |(id, function): (String, Arc<_>)| (id, lock(&function).counters().into_iter().collect());
        self.functions().into_iter().map(counters).collect()
    }

    /// All functions by their names, to be worked on without the inventory's lock.
    fn functions(&self) -> BTreeMap<String, Arc<Mutex<VirtioPci>>> {
        self.inventory().devices.values().map(|entry| (entry.id.clone(), entry.function.clone())).collect()
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
        let slots = self.events.write(port, data);
        let leaving: Vec<_> = slots.filter_map(|slot| Some((slot, self.begin_to_end(slot)?))).collect();
        // As for a pause: a guest may let go of all devices at once.
        for (slot, (_, function)) in &leaving {
            self.bus.remove(*slot);
            lock(function).ask_to_end();
        }
        leaving.into_iter().for_each(|(slot, (id, function))| self.let_go(slot, id, function));
    }

    /// The guest lets go of the device in a slot. `None` if nobody asked for that.
    fn begin_to_end(&self, slot: u8) -> Option<(String, Arc<Mutex<VirtioPci>>)> {
        let mut inventory = self.inventory();
        let Some(entry) = inventory.devices.get_mut(&slot).filter(|entry| entry.stage == Stage::Leaving) else {
            tracing::debug!("the guest lets go of slot {slot}, which nobody asked for");
            return None;
        };
        entry.stage = Stage::Ending;
        Some((entry.id.clone(), entry.function.clone()))
    }

    /// The guest has let go of the device in a slot, which ends. It may take its time: others need not wait for that.
    fn let_go(&self, slot: u8, id: String, function: Arc<Mutex<VirtioPci>>) {
        lock(&function).end();
        drop(function);
        let mut balloon = self.balloon();
        if balloon.as_ref().is_some_and(|(name, _)| *name == id) {
            *balloon = None;
        }
        drop(balloon);
        // Nothing of it works any more: slot and name are free. The machine may have ended meanwhile.
        let mut inventory = self.inventory();
        self.events.gone(slot);
        let entry = inventory.devices.remove(&slot);
        // Before another device can have its name; and by whoever took it out, which tells it once.
        if entry.is_some() {
            self.tell_removed(&id);
        }
        drop(inventory);
        drop(entry);
    }

    fn tell_removed(&self, id: &str) {
        self.monitor.emit("vm", "device-removed", json!({ "id": id }));
    }

    fn balloon(&self) -> MutexGuard<'_, Option<(String, Arc<BalloonSize>)>> {
        self.balloon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inventory(&self) -> MutexGuard<'_, Inventory> {
        // It is whole between any two statements.
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot and the name of a device that is being made. Dropped, they are reserved no more.
struct Reservation<'a> {
    manager: &'a DeviceManager,
    slot: u8,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.manager.inventory().reserved.remove(&self.slot);
    }
}

impl Inventory {
    /// Finds a slot and a name for a device, and reserves them.
    fn reserve(&mut self, kind: &str, id: Option<String>) -> Result<(u8, String)> {
        if self.ended {
            return Err(Error::Ended);
        }
        let mut slots = 1..PCI_SLOTS;
        let free = slots.find(|slot| !self.devices.contains_key(slot) && !self.reserved.contains_key(slot));
        let slot = free.ok_or(Error::NoSlot { slots: DEVICE_SLOTS })?;
        let id = match id {
            Some(id) => self.check_name(id)?,
            None => self.make_up_name(kind),
        };
        self.reserved.insert(slot, id.clone());
        Ok((slot, id))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let devices = self.devices.values().map(|entry| entry.id.as_str());
        devices.chain(self.reserved.values().map(String::as_str))
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
