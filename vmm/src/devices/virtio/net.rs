//! A network device (virtio 1.3, section 5.1) on a tap interface of the host's.
//!
//! ```text
//! receive 0, transmit 0 ── thread 0 ── tap queue 0 ─┐
//! receive n, transmit n ── thread n ── tap queue n ─┴─ the interface
//! control ──────────────── thread ──── which queues are used, offloads
//! ```
//!
//! Guarantees:
//! * Data goes straight between the tap and guest memory, but for the part of a frame that is larger than the one before:
//!   that is copied once.
//! * A frame that makes no sense, or whose buffers are private, is dropped and counted, and the others go on. So is one that
//!   the other side has no room for: see [`pair`].
//! * A driver that resets the device gets no frames from before.
//!
//! Cost: a thread and 66 KiB for each pair of queues.

mod control;
pub mod offloads;
pub mod pair;
pub mod tap;

use std::io;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::counter::{Counter, counters};
use super::worker::Workers;
use super::{ActivateError, Activation, VirtioDevice, read_bytes};
use crate::config::NetConfig;
use crate::{Error, Result};
use control::Control;
use offloads::tap_offloads;
use pair::{MAX_FRAME, Pair, RECEIVE, TRANSMIT};
use tap::Tap;

/// Bytes of the header before each frame (virtio 1.3, 5.1.6).
pub const HEADER: usize = 12;

/// The most pairs of queues: as many as the processors that a machine may have are of use.
const MAX_PAIRS: u16 = 64;

/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;

/// The least that an MTU may be (RFC 791).
const MIN_MTU: u16 = 68;

/// A network device.
pub struct Net {
    name: String,
    mac: [u8; 6],
    mtu: u16,
    pairs: u16,
    queue_size: u16,
    features: u64,
    tap: Arc<Tap>,
    counters: Arc<Counters>,
    workers: Workers,
}

counters! {
    /// What a network device counts.
    pub struct Counters {
        /// Frames that the guest got.
        rx_frames: Counter => "rx_frames",
        /// Bytes of these.
        rx_bytes: Counter => "rx_bytes",
        /// Frames for the guest that were dropped.
        rx_dropped: Counter => "rx_dropped",
        /// Frames that the guest sent.
        tx_frames: Counter => "tx_frames",
        /// Bytes of these.
        tx_bytes: Counter => "tx_bytes",
        /// Frames of the guest's that were dropped.
        tx_dropped: Counter => "tx_dropped",
        /// Requests and buffers of the guest's that made no sense, or were refused.
        failed: Counter => "failed",
        /// Of those, such as named memory that devices may not touch.
        refused: Counter => "refused",
        /// Queues that could not be used as they were.
        queue_faults: Arc<Counter> => "queue_faults",
    }
}

/// These bits.
const fn bits(numbers: &[u32]) -> u64 {
    let (mut all, mut index) = (0, 0);
    while index < numbers.len() {
        all |= 1 << numbers[index];
        index += 1;
    }
    all
}

impl Net {
    /// Opens or makes the interface.
    ///
    /// # Errors
    /// An interface that can't be used; a configuration that makes no sense.
    pub fn new(config: &NetConfig) -> Result<Self> {
        check(config)?;
        let tap = Tap::open(config)?;
        let own = [
            (true, bits(&[VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_CTRL_VQ])),
            (config.checksum_offload, bits(&[VIRTIO_NET_F_CTRL_GUEST_OFFLOADS])),
            (config.mtu.is_some(), bits(&[VIRTIO_NET_F_MTU])),
            (config.queue_pairs > 1, bits(&[VIRTIO_NET_F_MQ])),
        ];
        let own = own.iter().filter(|(on, _)| *on).fold(0, |all, (_, bits)| all | bits);
        Ok(Self {
            name: config.id.clone().unwrap_or_else(|| "net".into()),
            mac: config.mac.map_or_else(make_mac, Ok)?,
            mtu: config.mtu.unwrap_or(0),
            pairs: config.queue_pairs,
            queue_size: config.queue_size,
            features: own | offloads::features(config, tap.segments_udp()),
            tap: Arc::new(tap),
            counters: Arc::default(),
            workers: Workers::default(),
        })
    }

    /// The interface's name on the host.
    pub fn interface(&self) -> &str {
        self.tap.name()
    }

    /// The guest's hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn start(&mut self, mut activation: Activation) -> io::Result<()> {
        let (features, memory) = (activation.features, activation.memory.clone());
        let several = features >> VIRTIO_NET_F_MQ & 1 == 1;
        let pairs = if several { self.pairs } else { 1 };
        let mut ring = |index| activation.take_ring(index, &self.counters.queue_faults);
        self.tap.set_offloads(tap_offloads(features))?;
        // More are used once the driver says so.
        self.tap.use_pairs(1)?;
        self.tap.drain();
        let mut wake = Vec::new();
        for number in 0..pairs {
            // The first is always there; a driver may leave the others out.
            let (receive, transmit) = match (ring(2 * number), ring(2 * number + 1)) {
                (Ok(receive), Ok(transmit)) => (receive, transmit),
                (Err(error), _) | (_, Err(error)) if number == 0 => return Err(error),
                _ => continue,
            };
            wake.push(receive.notified().try_clone_to_owned()?);
            let pair = Pair {
                number: number.into(),
                receive,
                transmit,
                view: memory.view(&self.name),
                tap: self.tap.clone(),
                counters: self.counters.clone(),
                mergeable: features >> VIRTIO_NET_F_MRG_RXBUF & 1 == 1,
                spill: vec![0; MAX_FRAME + 1].into(),
                listening: false,
                expected: 0,
                failures: 0,
            };
            self.workers.start(&self.name, pair, |pair, sources| {
                sources.add(pair.receive.notified(), RECEIVE, EventFlags::IN)?;
                sources.add(pair.transmit.notified(), TRANSMIT, EventFlags::IN)
            })?;
        }
        // Behind the pairs that the driver knows of (virtio 1.3, 5.1.2).
        let Ok(ring) = ring(2 * pairs) else { return Ok(()) };
        let (tap, counters) = (self.tap.clone(), self.counters.clone());
        let (view, pairs) = (memory.view(&self.name), pairs.into());
        let control = Control { ring, view, tap, features, pairs, wake, counters };
        self.workers
            .start(&self.name, control, |control, sources| sources.add(control.ring.notified(), 0, EventFlags::IN))
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.queue_size; 2 * usize::from(self.pairs)];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    /// As virtio 1.3, 5.1.4 lays it out.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        self.start(activation).map_err(|source| {
            self.deactivate();
            ActivateError { operation: "start a network device", source }
        })
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

fn check(config: &NetConfig) -> Result<()> {
    let name = config.tap.as_deref().unwrap_or("without a name");
    let bad =
        |problem: &str| Err(Error::Device { device: format!("network interface {name}"), problem: problem.into() });
    if name.is_empty()
        || name.contains(['\0', '/'])
        || config.tap.as_ref().is_some_and(|tap| tap.len() >= libc::IFNAMSIZ)
    {
        return bad("an interface's name has 1 to 15 bytes and no slash: choose another");
    }
    if !(1..=MAX_PAIRS).contains(&config.queue_pairs) {
        return bad("it needs 1 to 64 pairs of queues: one for each processor is enough");
    }
    if !config.queue_size.is_power_of_two() || !(16..=1024).contains(&config.queue_size) {
        return bad("its queues need a power of two of entries, from 16 to 1024");
    }
    if config.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
        return bad("its MTU must be at least 68");
    }
    if config.mac.is_some_and(|mac| mac[0] & 1 == 1 || mac == [0; 6]) {
        return bad("its hardware address is none of a single device: choose one whose first byte is even, such as 02");
    }
    Ok(())
}

/// A hardware address that nobody else has, as far as chance goes: one of those that are administered locally.
fn make_mac() -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::system("make up a hardware address")(errno.into()))?;
    mac[0] = (mac[0] & 0xfc) | 2;
    Ok(mac)
}
