//! One connection: a unix socket on the host's side, a port of the guest's on the other, and how much each has room for
//! (virtio 1.3, 5.10.6.3).

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::event::epoll::EventFlags;

use super::packet::{Header, NO_RECEIVE, NO_SEND};
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::worker::Sources;

/// Bytes of the guest's that are held for a program of the host's which does not read.
pub const BUFFER: u32 = 256 << 10;

/// The longest line with which a program of the host's asks for a connection.
const MAX_LINE: usize = 32;

/// How far a connection is.
#[derive(Debug)]
pub(super) enum State {
    /// A program of the host's has connected, and says to where; so far this.
    Asking(Vec<u8>),
    /// The guest was asked.
    Requested,
    /// Data goes both ways.
    Established,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub state: State,
    /// The host's port, and the guest's.
    pub ports: (u32, u32),
    socket: UnixStream,
    /// What is waited for; `None` for nothing at all.
    interest: Option<EventFlags>,
    /// What the program of the host's has not taken yet.
    pending: VecDeque<u8>,
    /// Bytes that it has taken, and what the guest was told of that.
    taken: u32,
    told: u32,
    /// Bytes that were sent to the guest, how many of them its program has taken, and how much it has room for.
    sent: u32,
    guest_taken: u32,
    guest_buffer: u32,
    /// What the guest does not do any more: see [`NO_RECEIVE`] and [`NO_SEND`].
    pub guest_shutdown: u32,
    /// Whether the program of the host's sends no more.
    pub ended: bool,
    /// Whether it is among those that may have data for the guest.
    pub queued: bool,
    /// Whether the guest was asked how much it has room for.
    pub asked: bool,
    /// Whether it is about to be told how much there is room for.
    pub telling: bool,
}

/// What a program of the host's asks for.
pub(super) enum Asked {
    /// A connection to this port.
    Port(u32),
    /// It has not said all.
    Nothing,
    /// It makes no sense, or the program has gone.
    Nonsense,
}

impl Connection {
    pub fn new(socket: UnixStream, state: State, ports: (u32, u32)) -> Self {
        Self {
            state,
            ports,
            socket,
            interest: None,
            pending: VecDeque::new(),
            taken: 0,
            told: 0,
            sent: 0,
            guest_taken: 0,
            guest_buffer: 0,
            guest_shutdown: 0,
            ended: false,
            queued: false,
            asked: false,
            telling: false,
        }
    }

    /// Waits for what concerns it. While the guest is asked, that is just that the program goes, which an epoll tells unasked.
    /// Later it is nothing at all if there is nothing to wait for, since a socket whose other end is gone is always ready.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&mut self, id: u64, sources: &Sources) -> io::Result<()> {
        let listen = match self.state {
            State::Asking(_) => true,
            State::Requested => false,
            State::Established => !self.queued && !self.asked && !self.ended && self.guest_receives(),
        };
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::IN, listen);
        interest.set(EventFlags::OUT, !self.pending.is_empty());
        let interest = (!interest.is_empty() || matches!(self.state, State::Requested)).then_some(interest);
        match (self.interest, interest) {
            (before, after) if before == after => {}
            (None, Some(interest)) => sources.add(&self.socket, id, interest)?,
            (_, None) => sources.remove(&self.socket)?,
            (_, Some(interest)) => sources.modify(&self.socket, id, interest)?,
        }
        self.interest = interest;
        Ok(())
    }

    /// Whether the guest takes data.
    pub fn guest_receives(&self) -> bool {
        self.guest_shutdown & NO_RECEIVE == 0
    }

    /// Reads on in the line that asks for a connection, and not beyond it.
    pub fn ask(&mut self) -> Asked {
        let State::Asking(line) = &mut self.state else { return Asked::Nonsense };
        let mut byte = [0];
        while line.len() < MAX_LINE {
            match self.socket.read(&mut byte) {
                Ok(1) if byte == *b"\n" => {
                    let port = line.strip_prefix(b"CONNECT ").and_then(|port| str::from_utf8(port).ok()?.parse().ok());
                    return port.map_or(Asked::Nonsense, Asked::Port);
                }
                Ok(1) => line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Asked::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Asked::Nonsense,
            }
        }
        Asked::Nonsense
    }

    /// Tells the program of the host's that it has its connection.
    ///
    /// # Errors
    /// It has gone.
    pub fn accept(&mut self) -> io::Result<()> {
        self.state = State::Established;
        // A socket that nothing was written to takes as much as that at once.
        self.socket.write_all(format!("OK {}\n", self.ports.0).as_bytes())
    }

    /// Learns from a header how much the guest has room for.
    pub fn learn(&mut self, header: &Header) {
        (self.guest_buffer, self.guest_taken) = (header.buf_alloc, header.fwd_cnt);
    }

    /// How many bytes the guest has room for.
    pub fn credit(&self) -> u32 {
        // What it says about bytes that it never got makes no sense.
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// Fills in what the guest is told of this side.
    pub fn tell(&mut self, header: &mut Header) {
        (header.buf_alloc, header.fwd_cnt) = (BUFFER, self.taken);
        (self.told, self.telling) = (self.taken, false);
    }

    /// Whether the guest should be told how much room there is, since it may wait for that.
    pub fn should_tell(&self) -> bool {
        !self.telling && self.taken.wrapping_sub(self.told) >= BUFFER / 4
    }

    /// Takes data of the guest's. Returns whether it kept to the room that it was told of.
    ///
    /// # Errors
    /// The program of the host's has gone.
    pub fn put(&mut self, mut data: Buffers<'_>) -> io::Result<bool> {
        if data.size() > (BUFFER as usize).saturating_sub(self.pending.len()) || self.guest_shutdown & NO_SEND != 0 {
            return Ok(false);
        }
        if self.pending.is_empty() && data.size() > 0 {
            match data.write(&self.socket) {
                Ok(count) => self.taken = self.taken.wrapping_add(count as u32),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let mut rest = vec![0; data.size()];
        data.copy_out(&mut rest);
        self.pending.extend(rest);
        Ok(true)
    }

    /// Gives the program of the host's what it takes of what is held. Says whether nothing is held any more.
    ///
    /// # Errors
    /// It has gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.pending.is_empty() {
            match self.socket.write(self.pending.make_contiguous()) {
                Ok(count) => {
                    self.pending.drain(..count);
                    self.taken = self.taken.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.guest_shutdown & NO_SEND != 0 {
            // It may be shut down, or gone, already.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        Ok(true)
    }

    /// Reads what the program of the host's sends into a buffer of the guest's. Returns how many bytes; none at the end.
    ///
    /// # Errors
    /// There is nothing, or the program has gone.
    pub fn get(&mut self, data: &mut Buffers<'_>) -> io::Result<u32> {
        let count = data.read(&self.socket)? as u32;
        self.sent = self.sent.wrapping_add(count);
        Ok(count)
    }

    /// Whether the guest has ended it, and all that it sent was taken.
    pub fn is_over(&self) -> bool {
        self.guest_shutdown == NO_RECEIVE | NO_SEND && self.pending.is_empty()
    }

    /// What this side does not do any more, once the program of the host's sends no more: it may still read.
    pub fn own_shutdown(&self) -> u32 {
        if self.is_gone() { NO_RECEIVE | NO_SEND } else { NO_SEND }
    }

    /// Whether the program of the host's neither reads nor writes any more.
    pub fn is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut state = [PollFd::new(&self.socket, PollFlags::empty())];
        poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && state[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}
