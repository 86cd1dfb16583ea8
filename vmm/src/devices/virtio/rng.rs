//! The entropy device (virtio 1.3, 5.4): fills what the driver offers with bytes of a file.
//!
//! Guarantees: a request costs at most [`MAX_REQUEST`] bytes of the source, the driver is told how many it got, and a
//! source that gives none gets requests answered with none, and counted.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::epoll::EventFlags;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::worker::{Service, Sources, Worker};
use super::{ActivateError, Activation, Interrupt, VirtioDevice};
use crate::config::RngConfig;
use crate::memory::guarded::DeviceView;
use crate::{Error, Result};

/// The device ID.
const ENTROPY: u32 = 4;
const QUEUE_SIZE: u16 = 256;
/// The most bytes that one request gets.
const MAX_REQUEST: usize = 64 << 10;
/// Bytes that are read from the source at a time.
const PIECE: usize = 4096;

/// The device.
pub struct Rng {
    source: File,
    counters: Arc<Counters>,
    worker: Option<Worker>,
}

#[derive(Default)]
struct Counters {
    bytes: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
    source_failures: AtomicU64,
}

impl Rng {
    /// A device with this source.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn new(config: &RngConfig) -> Result<Self> {
        let path = &config.source;
        let open = || {
            // A source that has nothing at the moment (a pipe) does not keep the device's thread.
            let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            match file.metadata()?.is_dir() {
                true => Err(io::ErrorKind::IsADirectory.into()),
                false => Ok(file),
            }
        };
        let failed =
            |source| Error::File { operation: "read", role: "source of random numbers", path: path.clone(), source };
        Ok(Self { source: open().map_err(failed)?, counters: Arc::default(), worker: None })
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        ENTROPY
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let Some(queue) = queues.into_iter().next() else { return Ok(()) };
        let failed = |operation| move |source| ActivateError { operation, source };
        let service = Entropy {
            source: self.source.try_clone().map_err(failed("use the source of random numbers"))?,
            view: memory.view("rng"),
            queue: queue.queue,
            notified: queue.notified,
            interrupt,
            counters: self.counters.clone(),
        };
        let set_up = |service: &mut Entropy, sources: &Sources| sources.add(&service.notified, 0, EventFlags::IN);
        self.worker = Some(Worker::start("rng", service, set_up).map_err(failed("start the device's thread"))?);
        Ok(())
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
        let Counters { bytes, requests, refused, source_failures } = &*self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("bytes", load(bytes)),
            ("requests", load(requests)),
            ("refused", load(refused)),
            ("source_failures", load(source_failures)),
        ]
    }
}

/// What the device's thread works with.
struct Entropy {
    source: File,
    view: DeviceView,
    queue: Queue,
    notified: OwnedFd,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
}

impl Service for Entropy {
    fn ready(&mut self, _: u64, _: &Sources) -> ControlFlow<()> {
        let _ = rustix::io::read(&self.notified, &mut [0; 8]);
        let more = self.serve().unwrap_or_else(|error| {
            tracing::debug!("the driver of the entropy device has broken its queue: {error}");
            false
        });
        if more {
            // There is more: as if the driver had said so again.
            let _ = rustix::io::write(&self.notified, &1u64.to_ne_bytes());
        }
        ControlFlow::Continue(())
    }
}

impl Entropy {
    /// Serves requests, for a while. Returns whether there may be more.
    fn serve(&mut self) -> std::result::Result<bool, virtio_queue::Error> {
        // A driver may make one available unheard, just before it is asked to speak up again: then there is one to take, or
        // the queue is broken.
        for _ in 0..2 {
            self.queue.disable_notification(&self.view)?;
            let served = self.serve_available()?;
            let more = self.queue.enable_notification(&self.view)?;
            if served > 0 || !more {
                return Ok(more);
            }
        }
        Ok(false)
    }

    /// Serves at most a queue full of requests, and says how many those were.
    fn serve_available(&mut self) -> std::result::Result<u16, virtio_queue::Error> {
        let mut served = 0;
        while served < self.queue.size()
            && let Some(chain) = self.queue.pop_descriptor_chain(&self.view)
        {
            let head = chain.head_index();
            let buffers: Vec<(GuestAddress, usize)> =
                chain.writable().map(|descriptor| (descriptor.addr(), descriptor.len() as usize)).collect();
            let written = self.fill(&buffers);
            self.queue.add_used(&self.view, head, written)?;
            served += 1;
        }
        if served > 0 && self.queue.needs_notification(&self.view)? {
            self.interrupt.queue_used(0);
        }
        Ok(served)
    }

    /// Fills buffers one after another, and says how many bytes that are.
    fn fill(&mut self, buffers: &[(GuestAddress, usize)]) -> u32 {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let mut piece = [0; PIECE];
        let mut written = 0;
        'request: for (start, size) in buffers {
            let mut done = 0;
            while done < *size && written < MAX_REQUEST {
                let most = PIECE.min(size - done).min(MAX_REQUEST - written);
                let count = match self.source.read(&mut piece[..most]) {
                    Ok(count @ 1..) => count,
                    Ok(0) | Err(_) => {
                        self.counters.source_failures.fetch_add(1, Ordering::Relaxed);
                        break 'request;
                    }
                };
                let stored = start
                    .0
                    .checked_add(done as u64)
                    .is_some_and(|at| Bytes::write_slice(&self.view, &piece[..count], GuestAddress(at)).is_ok());
                if !stored {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    break 'request;
                }
                (done, written) = (done + count, written + count);
            }
        }
        self.counters.bytes.fetch_add(written as u64, Ordering::Relaxed);
        written as u32
    }
}
