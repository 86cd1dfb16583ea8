//! The serial port: a 16550 with interrupts, between the guest and any output.
//!
//! The device itself is vm-superio's. Its receive buffer is small, so input is given piece by piece: see
//! [`SerialDevice::input`]. An output that fails (a closed pipe) is reported once; the guest goes on.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// An interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Device = Serial<Line, NoEvents, Box<dyn Write + Send>>;

/// A 16550.
pub struct SerialDevice {
    serial: Mutex<Device>,
    output_failed: AtomicBool,
}

impl SerialDevice {
    /// A serial port that writes to `output` and raises `line`.
    pub fn new(line: EventFd, output: Box<dyn Write + Send>) -> Self {
        Self { serial: Mutex::new(Serial::new(Line(line), output)), output_failed: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads a register.
    pub(super) fn read(&self, register: u16) -> u8 {
        self.lock().read(register as u8)
    }

    /// The guest writes a register.
    pub(super) fn write(&self, register: u16, value: u8) {
        if let Err(error) = self.lock().write(register as u8, value)
            && !self.output_failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("the serial console's output is lost: {error:?}");
        }
    }

    /// Gives the guest as many of these bytes as its receive buffer has room for, and says how many those are.
    /// Never waits: while the guest is at the port, there is no room.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut serial = match self.serial.try_lock() {
            Ok(serial) => serial,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return 0,
        };
        // An error means a full buffer or a guest that looks at itself (loop-back): no room.
        serial.enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const DATA: u16 = 0;
    const INTERRUPT_ENABLE: u16 = 1;
    const LINE_STATUS: u16 = 5;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn more_input_than_the_buffer_holds_arrives_whole_and_interrupts() {
        let line = EventFd::new(0).unwrap();
        let serial = SerialDevice::new(line.try_clone().unwrap(), Box::new(io::sink()));
        serial.write(INTERRUPT_ENABLE, 1);
        let text: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let (mut rest, mut seen) = (&text[..], vec![]);
        while !rest.is_empty() {
            let taken = serial.input(rest);
            assert!(taken > 0, "an empty buffer has room");
            assert_eq!(serial.input(&rest[taken..]), 0, "a full one has none");
            rest = &rest[taken..];
            line.read().unwrap();
            while serial.read(LINE_STATUS) & 1 != 0 {
                seen.push(serial.read(DATA));
            }
        }
        assert_eq!(seen, text);
    }

    #[test]
    fn input_does_not_wait_for_an_output_that_takes_nothing() {
        let serial = SerialDevice::new(EventFd::new(0).unwrap(), Box::new(io::sink()));
        let busy = serial.lock();
        assert_eq!(serial.input(b"a"), 0);
        drop(busy);
        assert_eq!(serial.input(b"a"), 1);
    }

    #[test]
    fn output_reaches_the_writer() {
        let screen = Screen::default();
        let serial = SerialDevice::new(EventFd::new(0).unwrap(), Box::new(screen.clone()));
        for byte in b"hello" {
            serial.write(DATA, *byte);
        }
        assert_eq!(*screen.0.lock().unwrap(), b"hello");
    }
}
