//! Sockets between guest and host (virtio 1.3, section 5.10), stream sockets, with unix sockets on the host's side.
//!
//! ```text
//! host program ──connects to SOCKET, says "CONNECT 1234\n", is told "OK 1073741824\n"──► guest's port 1234
//! host program ◄──listens on SOCKET_1234──────────────────────────── guest connects to port 1234 of the host
//! ```
//!
//! This is what Firecracker and Cloud Hypervisor agree on, so programs for these work here. There is one [`muxer`], on a thread
//! of its own, with all [`connection`]s.
//!
//! Guarantees:
//! * No more than [`connections::MAX_CONNECTIONS`] connections, and [`connection::BUFFER`] bytes held for each; neither side can make
//!   the other hold more. A side that does not read slows down its own connection, and no other.
//! * Programs of the host's for which there is no descriptor wait, and are let in once there is one, whatever the guest does.
//! * A packet that makes no sense, or whose buffers are private, is counted, costs its connection at most, and others go on.
//! * The socket can be used by the user that runs Umbra. It is gone when the device is, and never taken from somebody else
//!   who listens on it.

pub mod connection;
pub mod connections;
mod listener;
pub mod muxer;
pub mod packet;

use std::io;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::counter::{Counter, counters};
use super::worker::Workers;
use super::{ActivateError, Activation, VirtioDevice, read_bytes};
use crate::config::VsockConfig;
use crate::{Error, Result};
use connections::Connections;
use listener::Listener;
use muxer::{LISTENER, Muxer, RECEIVE, TIMER, TRANSMIT};

/// Entries of its queues: for what it has to receive, to transmit, and for events, of which there are none.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Context identifiers that are nobody's own: below 3, and the one that stands for any (vsock(7)).
const FIRST_CID: u32 = 3;
const ANY_CID: u32 = u32::MAX;

/// A socket device.
pub struct Vsock {
    name: String,
    cid: u32,
    listener: Arc<Listener>,
    counters: Arc<Counters>,
    workers: Workers,
}

counters! {
    /// What a socket device counts.
    pub struct Counters {
        /// Bytes that the guest got.
        rx_bytes: Counter => "rx_bytes",
        /// Bytes that it sent.
        tx_bytes: Counter => "tx_bytes",
        /// Connections that were made, by either side.
        connections: Counter => "connections",
        /// Connections that were refused, since nobody listens or there are too many.
        rejected: Counter => "rejected",
        /// How often programs of the host's that connect had to wait, for want of descriptors.
        postponed: Counter => "postponed",
        /// Packets and buffers of the guest's that made no sense, or were refused.
        failed: Counter => "failed",
        /// Of those, such as named memory that devices may not touch.
        refused: Counter => "refused",
        /// Queues that could not be used as they were.
        queue_faults: Arc<Counter> => "queue_faults",
    }
}

impl Vsock {
    /// Makes the socket.
    ///
    /// # Errors
    /// A context identifier that no guest may have; a path that can't be a socket, or on which somebody listens.
    pub fn new(config: &VsockConfig) -> Result<Self> {
        if !(FIRST_CID..ANY_CID).contains(&config.cid) {
            let problem = format!("a guest's context identifier is at least 3, and not {}: choose another", config.cid);
            return Err(Error::Device { device: format!("socket device {}", config.socket.display()), problem });
        }
        Ok(Self {
            name: config.id.clone().unwrap_or_else(|| "vsock".into()),
            cid: config.cid,
            listener: Arc::new(Listener::bind(&config.socket)?),
            counters: Arc::default(),
            workers: Workers::default(),
        })
    }

    fn start(&mut self, mut activation: Activation) -> io::Result<()> {
        let faults = &self.counters.queue_faults;
        let connections = Connections::new(self.cid.into(), self.listener.clone(), self.counters.clone())?;
        let muxer = Muxer {
            receive: activation.take_ring(RECEIVE as u16, faults)?,
            transmit: activation.take_ring(TRANSMIT as u16, faults)?,
            view: activation.memory.view(&self.name),
            connections,
        };
        self.workers.start(&self.name, muxer, |muxer, sources| {
            sources.add(muxer.receive.notified(), RECEIVE, EventFlags::IN)?;
            sources.add(muxer.transmit.notified(), TRANSMIT, EventFlags::IN)?;
            sources.add(muxer.connections.timer(), TIMER, EventFlags::IN)?;
            sources.add(self.listener.socket(), LISTENER, EventFlags::IN)
        })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.into()
    }

    /// Stream sockets need no feature (virtio 1.3, 5.10.3).
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        self.start(activation).map_err(|source| ActivateError { operation: "start a socket device", source })
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
