//! The entropy device (virtio 1.3, 5.4): fills what the driver offers with bytes of a file.
//!
//! Guarantees: a request takes at most [`MAX_REQUEST`] bytes of the source, and the driver is told how many it got, at least
//! one: where the source has none, the request waits, and those behind it. One whose buffer is not shared memory, as a whole,
//! gets none and takes none.
//!
//! The source is asked again every [`ASK_AGAIN`] as long as a request waits, whatever it is: files and devices that can't be
//! waited for, or a pipe whose writer has gone and which another one may open.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;

use super::counter::{Counter, counters};
use super::ring::{Chain, Ring};
use super::timer::Timer;
use super::worker::{Service, Sources, Workers};
use super::{ActivateError, Activation, VirtioDevice};
use crate::config::RngConfig;
use crate::memory::guarded::DeviceView;
use crate::{Error, Result};

/// The device ID (virtio 1.3, 5).
const ENTROPY: u32 = 4;
const QUEUE_SIZE: u16 = 256;
/// The most bytes that one request gets.
pub const MAX_REQUEST: u32 = 64 << 10;
/// When a source is asked again that had nothing.
pub const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Tokens of what its thread waits for.
const REQUESTS: u64 = 0;
const TIMER: u64 = 1;

/// The device.
pub struct Rng {
    source: File,
    counters: Arc<Counters>,
    workers: Workers,
}

counters! {
    /// What the device counts.
    struct Counters {
        /// Requests that were answered, of whatever end.
        requests: Counter => "requests",
        /// Bytes that the guest got.
        bytes: Counter => "bytes",
        /// Requests that named memory which devices may not touch.
        refused: Counter => "refused",
        /// How often the source had too little for a request.
        source_errors: Counter => "source_errors",
        /// Queues that could not be used as they were.
        queue_faults: Arc<Counter> => "queue_faults",
    }
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
            if file.metadata()?.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(file) }
        };
        let failed =
            |source| Error::File { operation: "read", role: "source of random numbers", path: path.clone(), source };
        Ok(Self { source: open().map_err(failed)?, counters: Arc::default(), workers: Workers::default() })
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

    fn activate(&mut self, mut activation: Activation) -> std::result::Result<(), ActivateError> {
        let mut start = || {
            let service = Entropy {
                source: self.source.try_clone()?,
                ring: activation.take_ring(0, &self.counters.queue_faults)?,
                view: activation.memory.view("rng"),
                timer: Timer::new()?,
                counters: self.counters.clone(),
            };
            self.workers.start("rng", service, |service, sources| {
                sources.add(service.ring.notified(), REQUESTS, EventFlags::IN)?;
                sources.add(&service.timer, TIMER, EventFlags::IN)
            })
        };
        let failed = |source| ActivateError { operation: "start the entropy device's thread", source };
        start().map_err(failed)
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

/// What the device's thread works with.
struct Entropy {
    source: File,
    ring: Ring,
    view: DeviceView,
    /// Runs while a request waits for the source.
    timer: Timer,
    counters: Arc<Counters>,
}

impl Service for Entropy {
    fn ready(&mut self, token: u64, sources: &Sources) -> ControlFlow<()> {
        let Self { source, ring, view, timer, counters } = self;
        if token == TIMER {
            timer.take();
        }
        ring.serve_while(view, sources, |chain| {
            let filled = fill(source, view, chain, counters);
            match filled {
                Some(_) => counters.requests.add(1),
                None => timer.start(ASK_AGAIN),
            }
            filled
        });
        ControlFlow::Continue(())
    }
}

/// Fills the buffers of a request, and says how many bytes that are; `None` if the source has none.
fn fill(source: &mut File, view: &DeviceView, mut chain: Chain, counters: &Counters) -> Option<u32> {
    let wanted = chain.writable.take_first(MAX_REQUEST);
    // Not held while the source is read, which may take its time.
    let Ok(size) = wanted.guard(view).map(|buffers| buffers.size()) else {
        counters.refused.add(1);
        return Some(0);
    };
    let mut bytes = vec![0; size];
    let read = read(source, &mut bytes, counters);
    if read == 0 && size > 0 {
        return None;
    }
    let Ok(mut buffers) = wanted.guard(view) else {
        counters.refused.add(1);
        return Some(0);
    };
    let written = buffers.copy_in(&bytes[..read]);
    counters.bytes.add(written as u64);
    // At most MAX_REQUEST.
    Some(written as u32)
}

/// Reads what there is, and says how many bytes that are.
fn read(source: &mut File, bytes: &mut [u8], counters: &Counters) -> usize {
    let mut read = 0;
    while read < bytes.len() {
        let reason = match source.read(&mut bytes[read..]) {
            Ok(count @ 1..) => {
                read += count;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) => "it is at its end".into(),
            Err(error) => error.to_string(),
        };
        if counters.source_errors.get() == 0 {
            tracing::warn!("the source of random numbers has too few: the guest waits for them: {reason}");
        }
        counters.source_errors.add(1);
        break;
    }
    read
}
