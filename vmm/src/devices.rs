//! Devices, and who answers which port and which address without RAM.
//!
//! Ports and addresses that nobody has read as all ones and swallow writes, as on a PC.
//!
//! | room | what is in it |
//! |---|---|
//! | [`manager`] | the devices on the PCI bus, and how they come and go |
//! | [`pci`] | the bus |
//! | [`virtio`] | virtio devices, and their transport on the bus |
//! | [`interrupts`] | message-signalled interrupts |
//! | [`serial`], [`cmos`], [`power`] | the serial port; the clock; power-off and reset |
//! | [`custom`] | devices of whoever embeds the machine |

pub mod cmos;
pub mod custom;
pub mod interrupts;
pub mod manager;
pub mod pci;
pub mod power;
pub mod serial;
pub mod virtio;

use std::sync::Arc;

use arch::x86_64::map::{
    EVENT_PORT, EVENT_PORTS_END, KEYBOARD_PORT, PCI_ADDRESS_PORT, PCI_PORTS, RESET_PORT, SERIAL_PORT, SERIAL_PORTS,
    SLEEP_CONTROL_PORT,
};
use cmos::{CMOS_PORT, CMOS_PORTS, Cmos};
use custom::CustomDevices;
use manager::DeviceManager;
use power::PowerRequest;
use serial::SerialDevice;
use virtio::console::ConsoleInput;

/// All devices of a machine.
pub struct Devices {
    /// The serial port.
    pub serial: SerialDevice,
    /// Where the virtio console takes its input from, if there is one.
    pub console: Option<Arc<ConsoleInput>>,
    /// The clock.
    pub cmos: Cmos,
    /// The devices on the PCI bus.
    pub manager: Arc<DeviceManager>,
    /// Those of whoever embeds the machine.
    pub custom: CustomDevices,
}

impl Devices {
    /// Gives the guest as many of these bytes of standard input as it has room for, and says how many those are: by its
    /// virtio console, and by its serial port if it has none.
    pub fn input(&self, bytes: &[u8]) -> usize {
        match &self.console {
            Some(console) => console.input(bytes),
            None => self.serial.input(bytes),
        }
    }

    /// The guest reads a port. `data` holds all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            SERIAL_PORT..SERIAL_PORTS_END => data.fill_with(|| self.serial.read(port - SERIAL_PORT)),
            CMOS_PORT..CMOS_PORTS_END => data.fill_with(|| self.cmos.read(port - CMOS_PORT)),
            PCI_ADDRESS_PORT..PCI_PORTS_END => self.manager.bus().read_port(port, data),
            EVENT_PORT..EVENT_PORTS_END => self.manager.read_events(port, data),
            // The keyboard controller is never busy; the sleep status is "nothing happened".
            KEYBOARD_PORT | SLEEP_CONTROL_PORT..=RESET_PORT => data.fill(0),
            _ => self.custom.read_port(port, data),
        }
    }

    /// The guest writes a port. Returns what it asks of the machine's power, if anything.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        match port {
            SERIAL_PORT..SERIAL_PORTS_END => {
                for byte in data {
                    self.serial.write(port - SERIAL_PORT, *byte);
                }
                None
            }
            CMOS_PORT..CMOS_PORTS_END => {
                data.iter().for_each(|byte| self.cmos.write(port - CMOS_PORT, *byte));
                None
            }
            PCI_ADDRESS_PORT..PCI_PORTS_END => {
                self.manager.bus().write_port(port, data);
                None
            }
            EVENT_PORT..EVENT_PORTS_END => {
                self.manager.write_events(port, data);
                None
            }
            KEYBOARD_PORT | SLEEP_CONTROL_PORT..=RESET_PORT => power::request(port, *data.first()?),
            _ => {
                self.custom.write_port(port, data);
                None
            }
        }
    }

    /// The guest reads an address without RAM. `data` holds all ones.
    pub fn read_memory(&self, gpa: u64, data: &mut [u8]) {
        if !self.custom.read_memory(gpa, data) {
            self.manager.bus().read_memory(gpa, data);
        }
    }

    /// The guest writes an address without RAM.
    pub fn write_memory(&self, gpa: u64, data: &[u8]) {
        if !self.custom.write_memory(gpa, data) {
            self.manager.bus().write_memory(gpa, data);
        }
    }
}

const SERIAL_PORTS_END: u16 = SERIAL_PORT + SERIAL_PORTS;
const CMOS_PORTS_END: u16 = CMOS_PORT + CMOS_PORTS;
const PCI_PORTS_END: u16 = PCI_ADDRESS_PORT + PCI_PORTS;
