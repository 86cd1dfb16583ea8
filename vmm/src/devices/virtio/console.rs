//! A console with one port (virtio 1.3, section 5.3): what the guest writes goes to any output, what the operator types comes
//! from [`ConsoleInput`].
//!
//! Guarantees:
//! * What the guest writes reaches the output in order, and a chain is handed back when its bytes were taken over. At most
//!   [`MAX_OUTPUT`] bytes are held: a guest that writes faster than the output takes waits.
//! * Input is held until the guest has room for it, [`MAX_INPUT`] bytes at most: whoever brings more is told how many were
//!   taken. It outlives resets of the device.
//! * An output that fails is reported once; the guest goes on.
//!
//! An output that says it would block is asked again later, so a pause is prompt. One that blocks holds up the device's thread
//! and whoever waits for that: pauses, resets and the end.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::counter::Counter;
use super::ring::{BATCH, Chain, Ring};
use super::worker::{Service, Sources, Worker};
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::memory::guarded::DeviceView;
use crate::{Error, Result};

/// Entries of its queues.
const QUEUE_SIZE: u16 = 64;

/// The most bytes of one chain of the guest's, and so the most that are held for an output: twice what Linux writes at a time.
pub const MAX_OUTPUT: usize = 64 << 10;

/// The most bytes of input that are held.
pub const MAX_INPUT: usize = 64 << 10;

/// When an output is asked again that would have blocked.
const ASK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Its queues (virtio 1.3, 5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Tokens of what its thread waits for, besides the queues.
const INPUT: u64 = 2;
const TIMER: u64 = 3;

type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// A console.
pub struct Console {
    output: Output,
    input: Arc<ConsoleInput>,
    counters: Arc<Counters>,
    worker: Option<Worker>,
}

/// Where input for a guest is put.
pub struct ConsoleInput {
    bytes: Mutex<VecDeque<u8>>,
    /// Becomes readable when there is some.
    arrived: OwnedFd,
}

#[derive(Debug, Default)]
struct Counters {
    input_bytes: Counter,
    output_bytes: Counter,
    /// Bytes that the output did not take.
    lost_bytes: Counter,
    failed: Counter,
    refused: Counter,
    queue_faults: Arc<Counter>,
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
        Ok(Self { output: Arc::new(Mutex::new(output)), input, counters: Arc::default(), worker: None })
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, mut queues, interrupt, .. } = activation;
        let faults = &self.counters.queue_faults;
        let mut ring = |index| {
            let place = queues.iter().position(|queue: &ActiveQueue| queue.index == index)?;
            Some(Ring::new(queues.swap_remove(place), &interrupt, faults))
        };
        let (Some(receive), Some(transmit)) = (ring(RECEIVE), ring(TRANSMIT)) else {
            return Err(io::Error::other("the driver has not made both queues ready"));
        };
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let port = Port {
            receive,
            transmit,
            view: memory.view("console"),
            output: self.output.clone(),
            pending: VecDeque::new(),
            input: self.input.clone(),
            timer: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?,
            counters: self.counters.clone(),
        };
        self.worker = Some(Worker::start("console", port, |port, sources| {
            sources.add(port.receive.notified(), RECEIVE.into(), EventFlags::IN)?;
            sources.add(port.transmit.notified(), TRANSMIT.into(), EventFlags::IN)?;
            sources.add(&*port.input, INPUT, EventFlags::IN)?;
            sources.add(&port.timer, TIMER, EventFlags::IN)
        })?);
        Ok(())
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
        self.worker = None;
    }

    fn pause(&mut self) {
        self.worker.iter().for_each(Worker::pause);
    }

    fn resume(&mut self) {
        self.worker.iter().for_each(Worker::resume);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        vec![
            ("input_bytes", counters.input_bytes.get()),
            ("output_bytes", counters.output_bytes.get()),
            ("lost_bytes", counters.lost_bytes.get()),
            ("failed", counters.failed.get()),
            ("refused", counters.refused.get()),
            ("queue_faults", counters.queue_faults.get()),
        ]
    }
}

/// The port and its queues.
struct Port {
    receive: Ring,
    transmit: Ring,
    view: DeviceView,
    output: Output,
    /// What the output has not taken yet.
    pending: VecDeque<u8>,
    input: Arc<ConsoleInput>,
    /// Runs while an output would block.
    timer: OwnedFd,
    counters: Arc<Counters>,
}

impl Service for Port {
    fn ready(&mut self, token: u64, _: &Sources) -> ControlFlow<()> {
        match token {
            INPUT => {
                let _ = rustix::io::read(&*self.input, &mut [0; 8]);
                self.receive();
            }
            TIMER => {
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                self.transmit();
            }
            token if token == u64::from(RECEIVE) => {
                self.receive.begin(&self.view);
                self.receive();
            }
            _ => {
                self.transmit.begin(&self.view);
                self.transmit();
            }
        }
        ControlFlow::Continue(())
    }
}

impl Port {
    /// Gives the guest what input there is.
    fn receive(&mut self) {
        let Self { receive, view, input, counters, .. } = self;
        for _ in 0..BATCH {
            let mut held = input.held();
            if held.is_empty() {
                return receive.announce(view);
            }
            let Some(chain) = receive.take(view) else { return receive.announce(view) };
            let written = fill(view, counters, &chain, &mut held);
            drop(held);
            receive.put_used(view, chain.head, written);
        }
        receive.announce(view);
        receive.again();
    }

    /// Gives the output what the guest wrote.
    fn transmit(&mut self) {
        let Self { transmit, view, output, pending, counters, timer, .. } = self;
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..BATCH {
            if !put_out(&mut **output, pending, counters) {
                let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: ASK_AGAIN };
                if rustix::time::timerfd_settime(&*timer, TimerfdTimerFlags::empty(), &once).is_ok() {
                    return transmit.announce(view);
                }
            }
            let Some(chain) = transmit.take(view) else { return transmit.announce(view) };
            take_over(view, counters, &chain, pending);
            transmit.put_used(view, chain.head, 0);
        }
        transmit.announce(view);
        transmit.again();
    }
}

/// Fills a chain with input, and says with how much.
fn fill(view: &DeviceView, counters: &Counters, chain: &Chain, held: &mut VecDeque<u8>) -> u32 {
    let sound = chain.whole && chain.readable.size() == 0;
    let buffers = if sound { chain.writable.guard(view).inspect_err(|_| counters.refused.add(1)).ok() } else { None };
    let Some(mut buffers) = buffers else {
        counters.failed.add(1);
        return 0;
    };
    let count = buffers.copy_in(held.make_contiguous());
    held.drain(..count);
    counters.input_bytes.add(count as u64);
    // It fits: no more than MAX_INPUT is held.
    count as u32
}

/// Takes over what a chain of the guest's says.
fn take_over(view: &DeviceView, counters: &Counters, chain: &Chain, pending: &mut VecDeque<u8>) {
    let size = chain.readable.size();
    if !chain.whole || size > MAX_OUTPUT as u64 {
        return counters.failed.add(1);
    }
    let Ok(mut buffers) = chain.readable.guard(view) else {
        counters.refused.add(1);
        return counters.failed.add(1);
    };
    let mut bytes = vec![0; size as usize];
    buffers.copy_out(&mut bytes);
    pending.extend(bytes);
}

/// Writes what is pending. `false` if the output would block.
fn put_out(output: &mut dyn Write, pending: &mut VecDeque<u8>, counters: &Counters) -> bool {
    while !pending.is_empty() {
        match output.write(pending.make_contiguous()) {
            Ok(count) if count > 0 => {
                pending.drain(..count);
                counters.output_bytes.add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            result => {
                if counters.lost_bytes.get() == 0 {
                    tracing::warn!("output of the console is lost: {result:?}");
                }
                counters.lost_bytes.add(pending.len() as u64);
                pending.clear();
            }
        }
    }
    if let Err(error) = output.flush() {
        tracing::debug!("the console's output can't be flushed: {error}");
    }
    true
}
