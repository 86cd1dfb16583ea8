//! Devices on I/O ports, and who answers which port.
//!
//! Ports that nobody has read as all ones and swallow writes, as on a PC.

pub mod power;
pub mod serial;
pub mod virtio;

use arch::x86_64::map::{KEYBOARD_PORT, RESET_PORT, SERIAL_PORT, SERIAL_PORTS, SLEEP_CONTROL_PORT};
use power::PowerRequest;
use serial::SerialDevice;

/// All devices of a machine.
pub struct Devices {
    /// The serial port.
    pub serial: SerialDevice,
}

impl Devices {
    /// Makes all devices that work by themselves stand still. The serial port works on vCPUs' threads only.
    pub fn pause(&self) {
        // MERGE: self.manager.pause()
    }

    /// Lets them go on.
    pub fn resume(&self) {
        // MERGE: self.manager.resume()
    }

    /// The guest reads a port. `data` holds all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            SERIAL_PORT..SERIAL_PORTS_END => data.fill_with(|| self.serial.read(port - SERIAL_PORT)),
            // The keyboard controller is never busy; the sleep status is "nothing happened".
            KEYBOARD_PORT | SLEEP_CONTROL_PORT..=RESET_PORT => data.fill(0),
            _ => {}
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
            _ => power::request(port, *data.first()?),
        }
    }
}

const SERIAL_PORTS_END: u16 = SERIAL_PORT + SERIAL_PORTS;
