//! Machines on `hypervisor::model`: real guest memory with its conversions, and no processor.
//!
//! For tests, and for trying the API where there is no KVM. A guest here does nothing until it is told to stop, but obeys at
//! once: it lets go of devices, and gives back what its balloon is to take. Its disks and the like are a list.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::Hypervisor;
use hypervisor::model::ModelHypervisor;
use serde_json::json;
use vmm::config::{DiskConfig, NetConfig, Resolved, VmConfig, VsockConfig};
use vmm::console::Output;
use vmm::events::EventMonitor;
use vmm::memory::{GuestRam, RamOptions};
use vmm::{Error, Result, Stop};

use crate::host::{Built, Guest, Host};
use crate::types::{Counters, PciDeviceInfo};

/// Address bits of the model's processors.
const ADDRESS_BITS: u8 = 48;

/// Builds machines on the model.
#[derive(Default)]
pub struct ModelHost(ModelHypervisor);

struct ModelMachine {
    isolation: Isolation,
    ram: Arc<GuestRam>,
    events: Arc<EventMonitor>,
    /// How large the balloon is to be from the start.
    balloon: Option<u64>,
    /// Names of the devices that it starts with.
    devices: Vec<String>,
}

struct ModelGuest {
    isolation: Isolation,
    ram: Arc<GuestRam>,
    stops: Mutex<mpsc::Sender<Stop>>,
    paused: AtomicBool,
    devices: Mutex<Vec<PciDeviceInfo>>,
    events: Arc<EventMonitor>,
    balloon: Option<AtomicU64>,
}

impl Host for ModelHost {
    fn check(&self, config: &VmConfig) -> Result<()> {
        config.resolve(self.0.caps()).map(drop)
    }

    fn build(&self, config: &VmConfig, _: &Output, events: &Arc<EventMonitor>) -> Result<Box<dyn Built>> {
        let Resolved { isolation, .. } = config.resolve(self.0.caps())?;
        if !config.kernel.exists() {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(Error::File { operation: "read", role: "kernel", path: config.kernel.clone(), source });
        }
        let layout = MemoryLayout::new(isolation, config.memory.size, ADDRESS_BITS)?.reserving(config.memory.window)?;
        let vm = self.0.create_vm(isolation.vm_type())?;
        let options = RamOptions { policy: config.conversions, ..RamOptions::default() };
        let ram = Arc::new(GuestRam::new(vm, layout, options)?);
        if isolation.is_unmappable() {
            ram.make_all_private()?;
        }
        let disks = config.disks.iter().map(|disk| &disk.id);
        let nets = config.nets.iter().map(|net| &net.id);
        let named = disks.chain(nets).chain(config.vsock.iter().map(|vsock| &vsock.id)).flatten().cloned();
        let devices = named.chain(config.rng.iter().map(|_| "_rng0".into())).collect();
        let balloon = config.balloon.map(|balloon| balloon.size);
        Ok(Box::new(ModelMachine { isolation, ram, events: events.clone(), balloon, devices }))
    }
}

impl Built for ModelMachine {
    fn isolation(&self) -> Isolation {
        self.isolation
    }

    fn run(self: Box<Self>, events: &EventMonitor, started: &mut dyn FnMut(Arc<dyn Guest>)) -> Result<Stop> {
        let (stops, stopped) = mpsc::channel();
        events.emit("vm", "booted", ());
        let guest = ModelGuest {
            isolation: self.isolation,
            ram: self.ram.clone(),
            stops: Mutex::new(stops),
            paused: AtomicBool::new(false),
            devices: Mutex::default(),
            events: self.events,
            balloon: self.balloon.map(AtomicU64::new),
        };
        self.devices.into_iter().for_each(|id| drop(guest.add(Some(id))));
        started(Arc::new(guest));
        let stop = stopped.recv().unwrap_or(Stop::Requested);
        self.ram.end_conversions();
        let ended = Ok(stop);
        Stop::announce_reset(&ended, events);
        Stop::announce_end(&ended, events);
        ended
    }
}

impl ModelGuest {
    fn end(&self, stop: Stop) {
        let _ = self.stops.lock().unwrap_or_else(PoisonError::into_inner).send(stop);
    }

    fn add(&self, id: Option<String>) -> PciDeviceInfo {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let number = devices.len() + 1;
        let id = id.unwrap_or_else(|| format!("_device{number}"));
        let device = PciDeviceInfo { id, bdf: format!("0000:00:{number:02x}.0") };
        devices.push(device.clone());
        device
    }
}

impl Guest for ModelGuest {
    fn isolation(&self) -> Isolation {
        self.isolation
    }
    fn stop(&self) {
        self.end(Stop::Requested);
    }
    fn reset(&self) {
        self.end(Stop::Reset);
    }
    fn pause(&self) -> Result<()> {
        self.paused.store(true, Ordering::Release);
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.paused.store(false, Ordering::Release);
        Ok(())
    }
    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }
    fn nmi(&self) -> Result<()> {
        Ok(())
    }
    /// The guest obeys at once.
    fn power_button(&self) -> Result<()> {
        self.end(Stop::PowerOff);
        Ok(())
    }
    fn memory(&self) -> &Arc<GuestRam> {
        &self.ram
    }
    fn add_disk(&self, config: DiskConfig) -> Result<PciDeviceInfo> {
        Ok(self.add(config.id))
    }
    fn add_net(&self, config: NetConfig) -> Result<PciDeviceInfo> {
        Ok(self.add(config.id))
    }
    fn add_vsock(&self, config: VsockConfig) -> Result<PciDeviceInfo> {
        Ok(self.add(config.id))
    }
    fn remove_device(&self, id: &str) -> Result<()> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).retain(|device| device.id != id);
        self.events.emit("vm", "device-removed", json!({ "id": id }));
        Ok(())
    }
    fn set_balloon(&self, bytes: u64) -> Result<()> {
        self.balloon.as_ref().ok_or(Error::NoBalloon)?.store(bytes, Ordering::Release);
        Ok(())
    }
    fn balloon_size(&self) -> u64 {
        self.balloon.as_ref().map_or(0, |size| size.load(Ordering::Acquire))
    }
    fn counters(&self) -> Counters {
        let zero = || BTreeMap::from([("requests".to_owned(), 0)]);
        self.devices().into_iter().map(|device| (device.id, zero())).collect()
    }
    fn devices(&self) -> Vec<PciDeviceInfo> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
