//! All connections of a socket device, and what is to be said about them to the guest.
//!
//! Whatever is wrong with a connection ends it, and both sides are told: the guest by a reset, a program of the host's by the
//! end of its socket.

mod from_guest;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;

use super::Counters;
use super::connection::{Asked, Connection, State};
use super::listener::Listener;
use super::muxer::LISTENER;
use super::packet::{HOST_CID, Header, STREAM, op};
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::ring::BATCH;
use crate::devices::virtio::timer::Timer;
use crate::devices::virtio::worker::Sources;

/// The most connections at a time.
pub const MAX_CONNECTIONS: usize = 256;

/// How many answers may wait for a guest that takes none before programs of the host's are turned away.
const MAX_WAITING: usize = 16 * MAX_CONNECTIONS;

/// When programs of the host's are let in again that could not be.
pub const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The first number of a connection, above those that the thread's other tokens have.
const FIRST_ID: u64 = 16;

/// The first port that a program of the host's gets for its end: far above those that programs choose.
const FIRST_PORT: u32 = 1 << 30;

/// All connections.
pub(super) struct Connections {
    cid: u64,
    listener: Arc<Listener>,
    /// Runs while the listener is not waited for.
    timer: Timer,
    all: HashMap<u64, Connection>,
    /// Those that the guest knows of, by the host's port and its own.
    by_ports: HashMap<(u32, u32), u64>,
    next_id: u64,
    next_port: u32,
    answers: VecDeque<Answer>,
    /// Those that may have data for the guest, in turn.
    readable: VecDeque<u64>,
    counters: Arc<Counters>,
}

/// A packet without data that is to be sent to the guest.
struct Answer {
    ports: (u32, u32),
    op: u16,
    flags: u32,
}

impl Connections {
    /// None so far.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(cid: u64, listener: Arc<Listener>, counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Self {
            cid,
            listener,
            timer: Timer::new()?,
            all: HashMap::new(),
            by_ports: HashMap::new(),
            next_id: FIRST_ID,
            next_port: FIRST_PORT,
            answers: VecDeque::new(),
            readable: VecDeque::new(),
            counters,
        })
    }

    /// Becomes readable when [`Connections::listen`] is to be called.
    pub fn timer(&self) -> impl AsFd {
        self.timer.as_fd()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many answers wait for the guest.
    pub fn answers(&self) -> usize {
        self.answers.len()
    }

    /// Waits for programs of the host's again, after that was given up for a while.
    pub fn listen(&mut self, sources: &Sources) {
        self.timer.take();
        if sources.add(self.listener.socket(), LISTENER, EventFlags::IN).is_err() {
            self.timer.start(ACCEPT_AGAIN);
        }
    }

    /// Lets programs of the host's in.
    pub fn accept(&mut self, sources: &Sources) {
        for _ in 0..BATCH {
            let socket = match self.listener.socket().accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // No descriptors, most likely, and nobody tells when there are some. It can't fail: it is waited for.
                    let _ = sources.remove(self.listener.socket());
                    self.timer.start(ACCEPT_AGAIN);
                    self.listener.tell(&error);
                    return self.counters.postponed.add(1);
                }
            };
            let full = self.all.len() >= MAX_CONNECTIONS || self.answers.len() >= MAX_WAITING;
            if full || socket.set_nonblocking(true).is_err() {
                self.counters.rejected.add(1);
                continue;
            }
            self.add(Connection::new(socket, State::Asking(Vec::new()), (0, 0)), sources);
        }
    }

    fn add(&mut self, mut connection: Connection, sources: &Sources) -> Option<u64> {
        let id = self.next_id;
        self.next_id += 1;
        connection.wait(id, sources).ok()?;
        self.all.insert(id, connection);
        Some(id)
    }

    fn answer(&mut self, ports: (u32, u32), op: u16, flags: u32) {
        self.answers.push_back(Answer { ports, op, flags });
    }

    /// Ends a connection. Its socket leaves the epoll as it is closed.
    fn remove(&mut self, id: u64) -> Option<Connection> {
        let connection = self.all.remove(&id)?;
        if self.by_ports.get(&connection.ports) == Some(&id) {
            self.by_ports.remove(&connection.ports);
        }
        Some(connection)
    }

    /// Ends a connection, and tells the guest if it knows of it.
    fn reset(&mut self, id: u64) {
        if let Some(connection) = self.remove(id)
            && !matches!(connection.state, State::Asking(_))
        {
            self.answer(connection.ports, op::RESET, 0);
        }
    }

    /// After anything that may have changed a connection: ends it if it is over, tells the guest of room, waits for what
    /// concerns it now.
    fn settle(&mut self, id: u64, sources: &Sources) {
        let Some(connection) = self.all.get_mut(&id) else { return };
        if connection.asked && connection.credit() > 0 {
            connection.asked = false;
        }
        if connection.is_over() || connection.wait(id, sources).is_err() {
            return self.reset(id);
        }
        if connection.should_tell() {
            connection.telling = true;
            let ports = connection.ports;
            self.answer(ports, op::CREDIT_UPDATE, 0);
        }
    }

    /// The socket of a connection is ready, for whatever it was waited for.
    pub fn ready(&mut self, id: u64, sources: &Sources) {
        let Some(connection) = self.all.get_mut(&id) else { return };
        match connection.state {
            State::Asking(_) => self.ask(id),
            // The program did not wait for the guest's answer.
            State::Requested => {
                if connection.is_gone() {
                    self.counters.rejected.add(1);
                    self.reset(id);
                }
            }
            State::Established => match connection.flush() {
                Ok(_) => {
                    if !connection.queued && !connection.ended {
                        connection.queued = true;
                        self.readable.push_back(id);
                    }
                }
                Err(_) => self.reset(id),
            },
        }
        self.settle(id, sources);
    }

    fn ask(&mut self, id: u64) {
        let Some(connection) = self.all.get_mut(&id) else { return };
        match connection.ask() {
            Asked::Nothing => {}
            Asked::Nonsense => _ = self.remove(id),
            Asked::Port(port) => {
                let next = |port: u32| port.wrapping_add(1).max(FIRST_PORT);
                // There are far more ports than connections.
                while self.by_ports.contains_key(&(self.next_port, port)) {
                    self.next_port = next(self.next_port);
                }
                let ports = (self.next_port, port);
                self.next_port = next(self.next_port);
                (connection.ports, connection.state) = (ports, State::Requested);
                self.by_ports.insert(ports, id);
                self.answer(ports, op::REQUEST, 0);
            }
        }
    }

    /// Whether there is something for the guest, and how many bytes of data it has room for, at least one.
    pub fn next(&mut self, sources: &Sources) -> Option<u32> {
        while self.answers.is_empty() {
            let id = *self.readable.front()?;
            let Some(connection) = self.all.get_mut(&id).filter(|connection| connection.guest_receives()) else {
                self.done(id, sources);
                continue;
            };
            match connection.credit() {
                0 => {
                    connection.asked = true;
                    let ports = connection.ports;
                    self.done(id, sources);
                    self.answer(ports, op::CREDIT_REQUEST, 0);
                }
                credit => return Some(credit),
            }
        }
        Some(1)
    }

    /// The first connection in turn has nothing for the guest, for now.
    fn done(&mut self, id: u64, sources: &Sources) {
        self.readable.pop_front();
        if let Some(connection) = self.all.get_mut(&id) {
            connection.queued = false;
            self.settle(id, sources);
        }
    }

    /// Takes what is next for the guest, its data into this buffer. `None` if there is none after all.
    pub fn fill(&mut self, mut data: Buffers<'_>, sources: &Sources) -> Option<Header> {
        if let Some(Answer { ports, op, flags }) = self.answers.pop_front() {
            let mut header = self.header(ports, op);
            header.flags = flags;
            return Some(header);
        }
        let id = *self.readable.front()?;
        let connection = self.all.get_mut(&id)?;
        let ports = connection.ports;
        match connection.get(&mut data) {
            Ok(0) => {
                connection.ended = true;
                let flags = connection.own_shutdown();
                self.done(id, sources);
                self.answer(ports, op::SHUTDOWN, flags);
                None
            }
            Ok(len) => {
                self.readable.rotate_left(1);
                self.counters.rx_bytes.add(len.into());
                Some(Header { len, ..self.header(ports, op::DATA) })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.done(id, sources);
                None
            }
            Err(_) => {
                self.readable.pop_front();
                self.reset(id);
                None
            }
        }
    }

    fn header(&mut self, ports: (u32, u32), op: u16) -> Header {
        let (src_port, dst_port) = ports;
        let (src_cid, dst_cid) = (HOST_CID, self.cid);
        let mut header = Header { src_cid, dst_cid, src_port, dst_port, kind: STREAM, op, ..Header::default() };
        if let Some(connection) = self.by_ports.get(&ports).and_then(|id| self.all.get_mut(id)) {
            connection.tell(&mut header);
        }
        header
    }
}
