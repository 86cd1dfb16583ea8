//! The machine's life: one machine, or none, and what may be done to it when.
//!
//! ```text
//!            create            boot             pause
//! (nothing) ───────► Created ───────► Running ─────────► Paused
//!     ▲                               │  ▲  ◄─────────── │
//!     │ delete                shutdown│  │boot   resume   │shutdown
//!     └──────────────────── Shutdown ◄┴──┘◄──────────────┘
//! ```
//!
//! The configuration is kept from create to delete; devices that are added or removed change it, so that a machine that is
//! booted anew has them. A machine runs on a thread of its own (`life`), which builds it anew after each reset.
//!
//! Guarantees: one operation at a time; one that fails changes nothing (but a reset can't be taken back); when the
//! controller is closed, no machine is left. When the guest powers off, a machine fails, or somebody asks for the end, the
//! process is to end, as Cloud Hypervisor does; [`Settings::keep`] keeps it after a power-off, and where a machine that was
//! reset can't be built anew.

pub mod hub;
mod life;
pub mod operations;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, mpsc};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vmm::console::Output;
use vmm::events::EventMonitor;

use crate::ApiError;
use crate::host::{Guest, Host};
use crate::types::{DeviceNode, MemoryStats, VmConfig, VmInfo, VmState};
use hub::Hub;
use life::Run;

/// What can be chosen about a controller.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Whether the process goes on after the guest has powered off, or was reset and can't be built anew.
    pub keep: bool,
}

/// How many conversions may be under way at a time: each may wait for its turn, or for a device, without limit.
const CONVERSIONS: usize = 4;
/// How many may listen to events at a time.
const LISTENERS: usize = 16;

/// Why the process is to end.
pub type End = Result<(), vmm::Error>;

/// Owns the machine.
pub struct Controller {
    host: Arc<dyn Host>,
    events: Arc<EventMonitor>,
    hub: Hub,
    settings: Settings,
    machine: Mutex<Option<Vm>>,
    end: mpsc::Sender<End>,
    closed: Once,
    conversions: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
}

/// A machine that was created.
struct Vm {
    /// As the client gave it.
    config: VmConfig,
    /// What is built of it.
    spec: Arc<Mutex<vmm::VmConfig>>,
    output: Arc<Output>,
    run: Option<Run>,
    has_run: bool,
}

impl Controller {
    /// A controller without a machine. What is received says that the process is to end, and why.
    pub fn new(host: Arc<dyn Host>, events: Arc<EventMonitor>, settings: Settings) -> (Arc<Self>, mpsc::Receiver<End>) {
        let (end, ended) = mpsc::channel();
        let hub = Hub::new(&events);
        let (conversions, listeners) = (Arc::new(Semaphore::new(CONVERSIONS)), Arc::new(Semaphore::new(LISTENERS)));
        let (machine, closed) = (Mutex::new(None), Once::new());
        (Arc::new(Self { host, events, hub, settings, machine, end, closed, conversions, listeners }), ended)
    }

    /// Events, as they happen.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Where events are told.
    pub fn events(&self) -> &Arc<EventMonitor> {
        &self.events
    }

    /// Room for one more conversion, so that those that wait leave room for other requests.
    ///
    /// # Errors
    /// There is none.
    pub fn conversion(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = |_| {
            let message = format!("{CONVERSIONS} conversions are under way already: ask again when one has ended");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        };
        self.conversions.clone().try_acquire_owned().map_err(full)
    }

    /// Room for one more listener to events.
    ///
    /// # Errors
    /// There is none.
    pub fn listener(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = |_| {
            let message = format!("{LISTENERS} clients listen already: ask again when one has gone");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        };
        self.listeners.clone().try_acquire_owned().map_err(full)
    }

    /// Asks for the end of the process. Never waits.
    pub fn end(&self) {
        let _ = self.end.send(Ok(()));
    }

    /// Ends the machine, if there is one, and forgets it; tells that the process ends.
    pub fn close(&self) {
        self.delete();
        self.closed.call_once(|| self.events.emit("vmm", "shutdown", ()));
        self.hub.close();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vm>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine that runs, or stands still.
    ///
    /// # Errors
    /// There is none.
    pub fn guest(&self) -> Result<Arc<dyn Guest>, ApiError> {
        self.lock().as_ref().ok_or_else(ApiError::not_created)?.guest()
    }

    /// The machine.
    ///
    /// # Errors
    /// There is none.
    pub fn info(&self) -> Result<VmInfo, ApiError> {
        let machine = self.lock();
        let vm = machine.as_ref().ok_or_else(ApiError::not_created)?;
        let guest = vm.guest().ok();
        let isolation = guest.as_ref().map(|guest| guest.isolation().into());
        let taken = guest.as_ref().map_or(0, |guest| guest.balloon_size());
        let devices = guest.map(|guest| guest.devices()).unwrap_or_default();
        let node = |id: String, bdf| DeviceNode { id, resources: vec![], children: vec![], pci_bdf: Some(bdf) };
        let device_tree: BTreeMap<_, _> =
            devices.into_iter().map(|device| (device.id.clone(), node(device.id, device.bdf))).collect();
        let memory_actual_size = life::lock(&vm.spec).memory.size.saturating_sub(taken);
        Ok(VmInfo { config: vm.config.clone(), state: vm.state(), isolation, memory_actual_size, device_tree })
    }

    /// Where the machine is in its life, if there is one.
    pub fn state(&self) -> Option<VmState> {
        self.lock().as_ref().map(Vm::state)
    }

    /// Figures about the memory of the machine that runs, if one does.
    pub fn statistics(&self) -> Option<MemoryStats> {
        let guest = self.guest().ok()?;
        Some(guest.memory().statistics().into())
    }
}

impl Vm {
    fn state(&self) -> VmState {
        match self.guest() {
            Ok(guest) if guest.is_paused() => VmState::Paused,
            Ok(_) => VmState::Running,
            Err(_) if self.has_run => VmState::Shutdown,
            Err(_) => VmState::Created,
        }
    }

    fn guest(&self) -> Result<Arc<dyn Guest>, ApiError> {
        let guest = self.run.as_ref().and_then(Run::guest);
        guest.ok_or_else(|| ApiError::wrong_order("the machine is not booted: boot it with vm.boot"))
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            run.end();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.close();
    }
}

/// An error of a machine's, and what was to be done.
fn failed(what: &str) -> impl Fn(vmm::Error) -> ApiError {
    move |error| ApiError::from_machine(what, &error)
}

fn conflict(message: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, message)
}
