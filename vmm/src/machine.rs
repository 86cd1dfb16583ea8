//! The machine: built from a configuration, run until it stops.
//!
//! [`Machine::build`] checks everything that can be checked (files, sizes, what the host offers) before it creates
//! anything. [`Machine::run`] starts the vCPUs and the console and waits for the first reason to stop. A reset ends the
//! machine like a power-off does; whoever wants a reboot builds a new one, so that nothing of the old guest is left.
//!
//! | room | what is in it |
//! |---|---|
//! | `build` | from a configuration to a machine that is ready to run |
//! | `handle` | steering it from any thread: pause, resume, reset, stop |
//! | `launch_window` | what the guest of an isolation copies into its private memory first |
//! | `population` | private memory that the guest is about to touch |
//! | `control` | what its threads are told, and how they are reached |
//! | `processors` | the vCPUs' threads |
//! | `starts` | processors that the guest wakes, and the copy of low memory that they need |
//! | `helpers` | threads that wait for the world outside, and are gone when the machine is over |
//! | `signal` | how a thread is made to leave the guest |
//! | `ending` | what is over when the machine is, however it came to that |
//!
//! Guarantees: whatever a vCPU is at, it stops, pauses and ends promptly: nothing that a guest or a device does holds it up.
//! When [`Machine::run`] returns, all threads of the machine have ended.

mod build;
mod control;
mod ending;
mod handle;
mod helpers;
mod launch_window;
mod population;
mod processors;
mod signal;
mod starts;

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use arch::x86_64::Isolation;
use hypervisor::{GpaRange, Hypervisor, Vcpu, Vm};
use serde_json::json;

use crate::config::VmConfig;
use crate::console::{self, Output, RawTerminal};
use crate::devices::Devices;
use crate::devices::custom::CustomDevice;
use crate::events::EventMonitor;
use crate::memory::GuestRam;
use crate::vcpu::{Phase, VcpuContext};
use crate::{Error, Result};
use ending::Ending;
use handle::Transitions;
use population::Population;
use processors::Processors;

pub(crate) use control::{Control, Order};
pub use handle::MachineHandle;
pub(crate) use launch_window::LaunchWindow;
pub(crate) use starts::Starts;

/// Why a machine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The guest switched it off.
    PowerOff,
    /// The guest reset it, or the operator did.
    Reset,
    /// The guest crashed so badly that a PC resets (a triple fault).
    TripleFault,
    /// The operator ended it.
    Requested,
}

impl Stop {
    /// Whether a PC would boot anew.
    pub fn is_reset(self) -> bool {
        matches!(self, Self::Reset | Self::TripleFault)
    }

    /// Tells that a machine is reset, and of a triple fault; nothing of any other end. To be called first of all that ends it.
    pub fn announce_reset(result: &Result<Self>, events: &EventMonitor) {
        match result {
            Ok(Self::TripleFault) => events.emit("vm", "rebooting", json!({ "cause": "triple-fault" })),
            Ok(Self::Reset) => events.emit("vm", "rebooting", ()),
            Ok(Self::PowerOff | Self::Requested) | Err(_) => {}
        }
    }

    /// Tells that a machine is over which is not built anew. To be called last.
    pub fn announce_end(result: &Result<Self>, events: &EventMonitor) {
        if !result.as_ref().is_ok_and(|stop| stop.is_reset()) {
            events.emit("vm", "shutdown", ());
        }
    }
}

/// A machine that is ready to run.
pub struct Machine {
    isolation: Isolation,
    vcpus: Vec<(Box<dyn Vcpu>, Phase)>,
    ram: Arc<GuestRam>,
    devices: Devices,
    control: Arc<Control>,
    /// Whether standard input goes to the guest.
    terminal: bool,
    window: Option<LaunchWindow>,
    population: Option<Arc<Population>>,
    vm: Arc<dyn Vm>,
}

impl Machine {
    /// Builds a machine.
    ///
    /// # Errors
    /// Bad files or sizes, a host that can't do what was asked for, or a hypervisor that fails.
    pub fn build(
        hypervisor: &dyn Hypervisor,
        config: &VmConfig,
        output: &Output,
        events: &Arc<EventMonitor>,
    ) -> Result<Self> {
        build::build(hypervisor, config, output, events)
    }

    /// What makes its memory unmappable.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Its memory: conversions, and views for devices (`memory().devices().view("name")`).
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The VM beneath it, for what is the embedder's, such as interrupt lines of its devices
    /// ([`register_irqfd`](Vm::register_irqfd); pins 0, 2, 4 and 5 are in use). Regions, attributes, message routes and
    /// vCPUs are the machine's, one more of these than the guest has processors.
    pub fn vm(&self) -> &Arc<dyn Vm> {
        &self.vm
    }

    /// Adds a device of the embedder's on these ports. It is gone with this machine: one that is built after a reset gets it anew.
    ///
    /// # Errors
    /// Ports that the machine, KVM or another such device has.
    pub fn add_port_device(&mut self, ports: RangeInclusive<u16>, device: Box<dyn CustomDevice>) -> Result<()> {
        self.devices.custom.add_ports(ports, device)
    }

    /// Adds a device of the embedder's at these addresses, like [`Machine::add_port_device`]. Free on every machine are those from
    /// 0xfed0_0000 to 0xfee0_0000. Where guests have a C-bit, they reach it with that bit clear.
    ///
    /// # Errors
    /// Addresses that RAM, the machine, KVM or another such device has.
    pub fn add_memory_device(&mut self, range: GpaRange, device: Box<dyn CustomDevice>) -> Result<()> {
        self.devices.custom.add_memory(range, self.ram.layout(), device)
    }

    /// Runs until the guest or the operator ends it; `started` gets the handle for the latter.
    ///
    /// # Errors
    /// A vCPU that can't go on.
    pub fn run(self, events: &EventMonitor, started: impl FnOnce(MachineHandle)) -> Result<Stop> {
        let Self { isolation, vcpus, ram, devices, control, terminal, mut window, population, vm } = self;
        let devices = Arc::new(devices);
        let enter = || RawTerminal::enter().map_err(Error::system("make the terminal raw"));
        let terminal = terminal.then(enter).transpose()?;
        signal::handle()?;
        let parked = (0..).zip(&vcpus).filter(|(_, (_, phase))| matches!(phase, Phase::Parked { .. }));
        let starts = Arc::new(Starts::new(parked.map(|(id, _)| id).collect()));
        // From here on others can reach the machine, and must find it ended whatever fails.
        let ending = Ending { control: control.clone(), ram: ram.clone(), devices: devices.clone() };
        let handle = MachineHandle {
            isolation,
            ram: ram.clone(),
            devices: devices.clone(),
            control: control.clone(),
            vm,
            transitions: Arc::new(Transitions::default()),
            population: population.clone(),
        };
        if let Some(terminal) = &terminal {
            carry_input(&devices, &control, terminal)?;
        }
        let vcpus = (0..).zip(vcpus).map(|(id, (vcpu, phase))| {
            let context = VcpuContext {
                id,
                ram: ram.clone(),
                devices: devices.clone(),
                control: control.clone(),
                starts: starts.clone(),
                phase,
                // The boot processor's, which is the first.
                window: window.take(),
            };
            (vcpu, context)
        });
        // Before the guest runs, so that whoever sees a sign of it can reach the machine; and when nothing can fail any more.
        let begin = || {
            events.emit("vm", "booted", ());
            started(handle);
        };
        let processors = Processors::start(vcpus, &control, &ram, population, begin)?;

        wait_for_end(&control, &starts, &ram);
        processors.join();
        let result = control.take_outcome();
        Stop::announce_reset(&result, events);
        drop(ending);
        drop(terminal);
        events.emit("memory", "stats", ram.statistics());
        Stop::announce_end(&result, events);
        result
    }
}

/// Waits for the first reason to end, and looks at processors that are to start meanwhile.
fn wait_for_end(control: &Control, starts: &Starts, ram: &GuestRam) {
    loop {
        let (processors, limit) = starts.next_look();
        if control.wait_for_end(limit) {
            return;
        }
        processors.into_iter().for_each(|id| control.interrupt(id));
        starts.give_back_remains(ram);
    }
}

/// Starts a thread that carries the terminal's input to the guest.
fn carry_input(devices: &Arc<Devices>, control: &Arc<Control>, terminal: &RawTerminal) -> Result<()> {
    let (devices, own, escapes) = (devices.clone(), control.clone(), terminal.is_terminal());
    let carry = move |ended: &OwnedFd| console::carry_input(&devices, &own, escapes, ended);
    control.helpers().start("console", carry).map_err(Error::system("start a thread"))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(body).map_err(Error::system("start a thread"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_crash_is_told_from_other_ends() {
        let (monitor, (heard, told)) = (EventMonitor::new(), mpsc::channel());
        monitor.tell(Box::new(move |event| heard.send(event).unwrap()));
        for stop in [Stop::TripleFault, Stop::Reset, Stop::PowerOff] {
            Stop::announce_reset(&Ok(stop), &monitor);
            monitor.emit("memory", "stats", ());
            Stop::announce_end(&Ok(stop), &monitor);
        }
        let events: Vec<_> =
            told.try_iter().map(|event| (event["event"].clone(), event["properties"]["cause"].clone())).collect();
        let stats = || (json!("stats"), json!(null));
        let expected = [
            (json!("rebooting"), json!("triple-fault")),
            stats(),
            (json!("rebooting"), json!(null)),
            stats(),
            stats(),
            (json!("shutdown"), json!(null)),
        ];
        assert_eq!(events, expected);
        assert!(Stop::TripleFault.is_reset() && Stop::Reset.is_reset() && !Stop::Requested.is_reset());
    }
}
