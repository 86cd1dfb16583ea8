//! A disk: virtio's block device (virtio 1.3, section 5.2) on a raw image, a file or a block device of the host's.
//!
//! ```text
//! queue 0 ── worker 0 ─┐
//! queue 1 ── worker 1 ─┼─► Image: one open file, locked
//! queue n ── worker n ─┘
//! ```
//!
//! Each queue has a thread of its own, which handles one request after the other; what the guest wants to be done beside
//! each other it puts into different queues. Data goes straight between the file and guest memory.
//!
//! Guarantees:
//! * A flush that succeeds means that all writes which were answered before are on the disk (`fdatasync`). A driver that
//!   knows no flush gets that after each write.
//! * Nobody writes an image that somebody else uses, and nobody reads one that somebody else writes, as far as they ask for
//!   locks: see [`image`].
//! * A request that makes no sense, or whose buffers are private, fails on its own; it is counted, and the others go on.
//! * No request touches a byte outside of the image, and none is larger than [`request::MAX_BYTES`].

pub mod image;
mod lock;
pub mod request;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::counter::{Counter, counters};
use super::ring::Ring;
use super::worker::{Service, Sources, Workers};
use super::{ActivateError, Activation, VirtioDevice, read_bytes};
use crate::Result;
use crate::config::DiskConfig;
use crate::memory::guarded::DeviceView;
use image::{Image, SECTOR};
use request::{Executor, MAX_RANGES, MAX_SEGMENT, MAX_SEGMENTS, MAX_ZEROED_SECTORS};

/// The most sectors that one range of a discard may have: 64 MiB, and so 1 GiB for a request.
const MAX_DISCARD_SECTORS: u32 = 128 << 10;

/// A disk.
pub struct Block {
    name: String,
    queues: u16,
    queue_size: u16,
    features: u64,
    image: Arc<Image>,
    counters: Arc<Counters>,
    workers: Workers,
}

counters! {
    /// What a disk counts.
    pub struct Counters {
        /// Reads that succeeded.
        reads: Counter => "read_ops",
        /// Bytes of these.
        read_bytes: Counter => "read_bytes",
        /// Writes that succeeded.
        writes: Counter => "write_ops",
        /// Bytes of these.
        written_bytes: Counter => "write_bytes",
        /// Flushes that succeeded.
        flushes: Counter => "flush_ops",
        /// Discards and write-zeroes that succeeded.
        discards: Counter => "discard_ops",
        /// Requests that failed, for whatever reason.
        failed: Counter => "failed",
        /// Of those, such as named memory that devices may not touch.
        refused: Counter => "refused",
        /// Of those, such as the host's disk could not do.
        disk_errors: Counter => "disk_errors",
        /// Queues that could not be used as they were.
        queue_faults: Arc<Counter> => "queue_faults",
    }
}

impl Block {
    /// Opens and locks the image.
    ///
    /// # Errors
    /// An image that can't be opened, is none, or is in use.
    pub fn new(config: &DiskConfig) -> Result<Self> {
        let image = Image::open(config)?;
        let bits = [
            Some(VIRTIO_BLK_F_FLUSH),
            Some(VIRTIO_BLK_F_SIZE_MAX),
            Some(VIRTIO_BLK_F_SEG_MAX),
            Some(VIRTIO_BLK_F_BLK_SIZE),
            Some(VIRTIO_BLK_F_TOPOLOGY),
            (config.queues > 1).then_some(VIRTIO_BLK_F_MQ),
            config.readonly.then_some(VIRTIO_BLK_F_RO),
            (!config.readonly).then_some(VIRTIO_BLK_F_DISCARD),
            (!config.readonly).then_some(VIRTIO_BLK_F_WRITE_ZEROES),
        ];
        Ok(Self {
            name: config.id.clone().unwrap_or_else(|| "disk".into()),
            queues: config.queues,
            queue_size: config.queue_size,
            features: bits.into_iter().flatten().fold(0, |features, bit| features | 1 << bit),
            image: Arc::new(image),
            counters: Arc::default(),
            workers: Workers::default(),
        })
    }

    /// The configuration (virtio 1.3, 5.2.4).
    fn config(&self) -> [u8; 60] {
        let block_size = self.image.block_size();
        // In blocks of that size, as powers of two and as counts: 4 KiB is what file systems write at once.
        let preferred = (4096 / block_size).max(1);
        let discards = if self.features & 1 << VIRTIO_BLK_F_DISCARD != 0 { 1 } else { 0 };
        let mut config = [0; 60];
        let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.image.sectors().to_le_bytes());
        put(8, &MAX_SEGMENT.to_le_bytes());
        // Header and status take a descriptor each.
        let segments = MAX_SEGMENTS.min(u32::from(self.queue_size).saturating_sub(2)).max(1);
        put(12, &segments.to_le_bytes());
        put(20, &block_size.to_le_bytes());
        put(24, &[preferred.trailing_zeros() as u8]);
        put(26, &(preferred as u16).to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        put(36, &(discards * MAX_DISCARD_SECTORS).to_le_bytes());
        put(40, &(discards * MAX_RANGES).to_le_bytes());
        put(44, &(discards * preferred * (block_size / SECTOR as u32)).to_le_bytes());
        put(48, &(discards * MAX_ZEROED_SECTORS).to_le_bytes());
        put(52, &discards.to_le_bytes());
        put(56, &[discards as u8]);
        config
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        for active in queues {
            let service = Queue {
                ring: Ring::new(active, &interrupt, &self.counters.queue_faults),
                view: memory.view(&self.name),
                executor: Executor {
                    image: self.image.clone(),
                    counters: self.counters.clone(),
                    write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
                },
            };
            let started = self
                .workers
                .start(&self.name, service, |service, sources| sources.add(service.ring.notified(), 0, EventFlags::IN));
            if let Err(source) = started {
                self.deactivate();
                return Err(ActivateError { operation: "start a thread for a disk", source });
            }
        }
        Ok(())
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

/// One queue and what works on it.
struct Queue {
    ring: Ring,
    view: DeviceView,
    executor: Executor,
}

impl Service for Queue {
    fn ready(&mut self, _: u64, sources: &Sources) -> ControlFlow<()> {
        let Self { ring, view, executor } = self;
        ring.serve(view, sources, |chain| executor.execute(view, chain));
        ControlFlow::Continue(())
    }
}

/// An error that says what the system refused.
pub(super) fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS))
}
