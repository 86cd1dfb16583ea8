//! A console with one port (virtio 1.3, section 5.3): what the guest writes goes to any output, what the operator types comes
//! from [`ConsoleInput`].
//!
//! Guarantees:
//! * What the guest writes reaches the output in order, and a chain is handed back when its bytes were taken over. At most
//!   [`MAX_OUTPUT`] bytes are held: a guest that writes faster than the output takes waits. They outlive resets of the device.
//! * When the device goes, the output has [`LAST_WAIT`] for what is held; what it has not taken by then is lost, and told.
//! * Input is held until the guest has room for it, [`MAX_INPUT`] bytes at most: whoever brings more is told how many were
//!   taken. It outlives resets of the device.
//! * An output that fails is reported once; the guest goes on.
//!
//! An output that says it would block ([`output::PromptOutput`], which machines use) is asked again later, so a pause is
//! prompt. One that blocks holds up the device's thread and whoever waits for that: pauses, resets and the end.

pub mod output;
mod port;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::counter::{Counter, counters};
use super::timer::Timer;
use super::worker::Workers;
use super::{ActivateError, Activation, VirtioDevice};
use crate::{Error, Result};
use port::{Port, put_out};

/// Entries of its queues.
const QUEUE_SIZE: u16 = 64;

/// The most bytes of one chain of the guest's, and so the most that are held for an output: twice what Linux writes at a time.
pub const MAX_OUTPUT: usize = 64 << 10;

/// The most bytes of input that are held.
pub const MAX_INPUT: usize = 64 << 10;

/// Its queues (virtio 1.3, 5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Tokens of what its thread waits for, besides the queues.
const INPUT: u64 = 2;
const TIMER: u64 = 3;

/// How long the end of a console waits for an output that takes nothing.
pub const LAST_WAIT: Duration = Duration::from_millis(500);

/// How often it is asked meanwhile.
const LAST_LOOK: Duration = Duration::from_millis(5);

type SharedOutput = Arc<Mutex<Output>>;

/// Where the guest's words go.
struct Output {
    to: Box<dyn Write + Send>,
    /// What it has not taken yet.
    pending: VecDeque<u8>,
}

/// A console.
pub struct Console {
    output: SharedOutput,
    input: Arc<ConsoleInput>,
    counters: Arc<Counters>,
    workers: Workers,
}

/// Where input for a guest is put.
pub struct ConsoleInput {
    bytes: Mutex<VecDeque<u8>>,
    /// Becomes readable when there is some.
    arrived: OwnedFd,
}

counters! {
    /// What a console counts.
    struct Counters {
        /// Bytes that the guest got.
        input_bytes: Counter => "input_bytes",
        /// Bytes that the output took.
        output_bytes: Counter => "output_bytes",
        /// Bytes that it did not take.
        lost_bytes: Counter => "lost_bytes",
        /// Buffers of the guest's that made no sense, or were refused.
        failed: Counter => "failed",
        /// Of those, such as named memory that devices may not touch.
        refused: Counter => "refused",
        /// Queues that could not be used as they were.
        queue_faults: Arc<Counter> => "queue_faults",
    }
}

impl ConsoleInput {
    /// No input yet.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new() -> Result<Arc<Self>> {
        let arrived = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::system("create an event for console input")(errno.into()))?;
        Ok(Arc::new(Self { bytes: Mutex::default(), arrived }))
    }

    /// Takes as many of these bytes for the guest as there is room for, and says how many those are.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut held = self.held();
        let taken = bytes.len().min(MAX_INPUT.saturating_sub(held.len()));
        held.extend(&bytes[..taken]);
        drop(held);
        // It can't fail: the counter would have to be at its end.
        let _ = rustix::io::write(&self.arrived, &1u64.to_ne_bytes());
        taken
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // Nothing in here panics half-way.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for ConsoleInput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arrived.as_fd()
    }
}

impl Console {
    /// A console between this output and this input.
    ///
    /// # Errors
    /// None so far.
    pub fn new(output: Box<dyn Write + Send>, input: Arc<ConsoleInput>) -> Result<Self> {
        let output = Output { to: output, pending: VecDeque::new() };
        Ok(Self { output: Arc::new(Mutex::new(output)), input, counters: Arc::default(), workers: Workers::default() })
    }

    fn start(&mut self, mut activation: Activation) -> io::Result<()> {
        let faults = &self.counters.queue_faults;
        let port = Port {
            receive: activation.take_ring(RECEIVE, faults)?,
            transmit: activation.take_ring(TRANSMIT, faults)?,
            view: activation.memory.view("console"),
            output: self.output.clone(),
            input: self.input.clone(),
            timer: Timer::new()?,
            counters: self.counters.clone(),
        };
        self.workers.start("console", port, |port, sources| {
            sources.add(port.receive.notified(), RECEIVE.into(), EventFlags::IN)?;
            sources.add(port.transmit.notified(), TRANSMIT.into(), EventFlags::IN)?;
            sources.add(&*port.input, INPUT, EventFlags::IN)?;
            sources.add(&port.timer, TIMER, EventFlags::IN)
        })
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        0
    }

    /// It has no size that it could tell, and one port (virtio 1.3, 5.3.4): all zeros.
    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        self.start(activation).map_err(|source| ActivateError { operation: "start a console", source })
    }

    fn deactivate(&mut self) {
        self.workers.end();
    }

    fn workers(&self) -> &Workers {
        &self.workers
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.list()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.deactivate();
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        while !put_out(&mut output, &self.counters) && start.elapsed() < LAST_WAIT {
            std::thread::sleep(LAST_LOOK);
        }
        if !output.pending.is_empty() {
            tracing::warn!(
                "the last {} bytes of the console's output are lost: nobody takes them",
                output.pending.len()
            );
        }
    }
}
