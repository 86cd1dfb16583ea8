//! The serial port: a 16550 with interrupts, between the guest and any output.
//!
//! The device itself is vm-superio's. Input arrives by [`SerialDevice::input`], which waits while the guest's receive
//! buffer is full, so nothing that is typed gets lost. An output that fails (a closed pipe) is reported once; the guest
//! goes on.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// How long an input waits for room before it looks whether it shall end.
const PATIENCE: Duration = Duration::from_millis(200);

/// An interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Wakes the input when the guest has read all there was.
struct Drained(Arc<Condvar>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.notify_all();
    }
}

/// A 16550.
pub struct SerialDevice {
    serial: Mutex<Serial<Line, Drained, Box<dyn Write + Send>>>,
    drained: Arc<Condvar>,
    output_failed: AtomicBool,
}

impl SerialDevice {
    /// A serial port that writes to `output` and raises `line`.
    pub fn new(line: EventFd, output: Box<dyn Write + Send>) -> Self {
        let drained = Arc::new(Condvar::new());
        let serial = Serial::with_events(Line(line), Drained(drained.clone()), output);
        Self { serial: Mutex::new(serial), drained, output_failed: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Serial<Line, Drained, Box<dyn Write + Send>>> {
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

    /// Gives the guest these bytes, and waits while its buffer is full; gives up when `stop` says so.
    pub fn input(&self, mut bytes: &[u8], stop: &AtomicBool) {
        let mut serial = self.lock();
        while !bytes.is_empty() && !stop.load(Ordering::Acquire) {
            // An error means a full buffer or a guest that looks at itself (loop-back): wait, too.
            let taken = serial.enqueue_raw_bytes(bytes).unwrap_or(0);
            bytes = &bytes[taken..];
            if taken == 0 {
                let waited = self.drained.wait_timeout(serial, PATIENCE);
                serial = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

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
        let serial = Arc::new(SerialDevice::new(line.try_clone().unwrap(), Box::new(io::sink())));
        serial.write(INTERRUPT_ENABLE, 1);
        let text: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let (sender, typed) = (serial.clone(), text.clone());
        let (done, finished) = mpsc::channel();
        std::thread::spawn(move || {
            sender.input(&typed, &AtomicBool::new(false));
            done.send(()).unwrap();
        });
        line.read().unwrap();
        let mut seen = vec![];
        while seen.len() < text.len() {
            if serial.read(LINE_STATUS) & 1 != 0 {
                seen.push(serial.read(DATA));
            }
        }
        assert_eq!(seen, text);
        finished.recv_timeout(Duration::from_secs(10)).unwrap();
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

    #[test]
    fn input_that_nobody_reads_ends_when_told() {
        let serial = SerialDevice::new(EventFd::new(0).unwrap(), Box::new(io::sink()));
        serial.input(&[0; 1000], &AtomicBool::new(true));
    }
}
