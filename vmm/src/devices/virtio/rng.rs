//! The entropy device (virtio 1.3, 5.4): fills what the driver offers with bytes of a file.
//!
//! Guarantees: a request takes at most [`MAX_REQUEST`] bytes of the source, and the driver is told how many it got. A request
//! whose buffer is not shared memory, as a whole, gets none and takes none; nor does one get any when the source has none.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;

use super::counter::{Counter, counters};
use super::ring::{Chain, Ring};
use super::worker::{Service, Sources, Worker};
use super::{ActivateError, Activation, VirtioDevice};
use crate::config::RngConfig;
use crate::memory::guarded::DeviceView;
use crate::{Error, Result};

/// The device ID (virtio 1.3, 5).
const ENTROPY: u32 = 4;
const QUEUE_SIZE: u16 = 256;
/// The most bytes that one request gets.
pub const MAX_REQUEST: u32 = 64 << 10;

/// The device.
pub struct Rng {
    source: File,
    counters: Arc<Counters>,
    worker: Option<Worker>,
}

counters! {
    /// What the device counts.
    struct Counters {
        /// Requests, of whatever end.
        requests: Counter => "requests",
        /// Bytes that the guest got.
        bytes: Counter => "bytes",
        /// Requests that named memory which devices may not touch.
        refused: Counter => "refused",
        /// Requests that the source had too little for.
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

    fn activate(&mut self, mut activation: Activation) -> std::result::Result<(), ActivateError> {
        let mut start = || {
            let service = Entropy {
                source: self.source.try_clone()?,
                ring: activation.take_ring(0, &self.counters.queue_faults)?,
                view: activation.memory.view("rng"),
                counters: self.counters.clone(),
            };
            Worker::start("rng", service, |service, sources| sources.add(service.ring.notified(), 0, EventFlags::IN))
        };
        let failed = |source| ActivateError { operation: "start the entropy device's thread", source };
        self.worker = Some(start().map_err(failed)?);
        Ok(())
    }

    fn deactivate(&mut self) {
        self.worker = None;
    }

    fn workers(&self) -> &[Worker] {
        self.worker.as_slice()
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
    counters: Arc<Counters>,
}

impl Service for Entropy {
    fn ready(&mut self, _: u64, sources: &Sources) -> ControlFlow<()> {
        let Self { source, ring, view, counters } = self;
        ring.serve(view, sources, |chain| fill(source, view, chain, counters));
        ControlFlow::Continue(())
    }
}

/// Fills the buffers of a request, and says how many bytes that are.
fn fill(source: &mut File, view: &DeviceView, mut chain: Chain, counters: &Counters) -> u32 {
    counters.requests.add(1);
    let wanted = chain.writable.take_first(MAX_REQUEST);
    // Not held while the source is read, which may take its time.
    let Ok(size) = wanted.guard(view).map(|buffers| buffers.size()) else {
        counters.refused.add(1);
        return 0;
    };
    let mut bytes = vec![0; size];
    let mut read = 0;
    while read < bytes.len() {
        match source.read(&mut bytes[read..]) {
            Ok(count @ 1..) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                counters.source_errors.add(1);
                break;
            }
        }
    }
    let Ok(mut buffers) = wanted.guard(view) else {
        counters.refused.add(1);
        return 0;
    };
    let written = buffers.copy_in(&bytes[..read]);
    counters.bytes.add(written as u64);
    // At most MAX_REQUEST.
    written as u32
}
