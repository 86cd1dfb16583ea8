//! Packets of the guest's, and what becomes of them.

use super::{Connections, MAX_CONNECTIONS};
use crate::devices::virtio::ring::Chain;
use crate::devices::virtio::vsock::connection::{BUFFER, Connection, State};
use crate::devices::virtio::vsock::packet::{HEADER, HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use crate::devices::virtio::worker::Sources;
use crate::memory::guarded::DeviceView;

impl Connections {
    /// Handles a packet of the guest's. Returns whether it makes sense.
    pub fn packet(&mut self, view: &DeviceView, mut chain: Chain, sources: &Sources) -> bool {
        let start = chain.readable.take_first(HEADER as u32);
        if !chain.whole || chain.writable.size() > 0 || start.size() < HEADER as u64 {
            return false;
        }
        let Ok(mut start) = start.guard(view) else {
            self.counters.refused.add(1);
            return false;
        };
        let mut bytes = [0; HEADER];
        start.copy_out(&mut bytes);
        let header = Header::from_bytes(&bytes);
        if (header.src_cid, header.dst_cid) != (self.cid, HOST_CID) {
            return false;
        }
        let ports = (header.dst_port, header.src_port);
        match self.by_ports.get(&ports).copied() {
            _ if header.kind != STREAM => {
                self.answer(ports, op::RESET, 0);
                false
            }
            Some(id) => {
                let sound = self.known(id, &header, view, chain);
                self.settle(id, sources);
                sound
            }
            None => self.stranger(&header, ports, sources),
        }
    }

    /// A packet of a connection.
    fn known(&mut self, id: u64, header: &Header, view: &DeviceView, chain: Chain) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return false };
        connection.learn(header);
        match (header.op, &connection.state) {
            (op::RESPONSE, State::Requested) => match connection.accept() {
                Ok(()) => self.counters.connections.add(1),
                Err(_) => self.reset(id),
            },
            (op::RESET, state) => {
                if matches!(state, State::Requested) {
                    self.counters.rejected.add(1);
                }
                self.remove(id);
            }
            (op::SHUTDOWN, State::Established) => {
                connection.guest_shutdown |= header.flags & (NO_RECEIVE | NO_SEND);
                if connection.flush().is_err() {
                    self.reset(id);
                }
            }
            (op::DATA, State::Established) => return self.data(id, header.len, view, chain),
            (op::CREDIT_UPDATE, State::Established) => {}
            (op::CREDIT_REQUEST, State::Established) => {
                let ports = connection.ports;
                self.answer(ports, op::CREDIT_UPDATE, 0);
            }
            _ => {
                self.reset(id);
                return false;
            }
        }
        true
    }

    fn data(&mut self, id: u64, size: u32, view: &DeviceView, mut chain: Chain) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return false };
        let data = chain.readable.take_first(size);
        let taken = if size > BUFFER || data.size() < size.into() {
            Ok(false)
        } else if let Ok(data) = data.guard(view) {
            connection.put(data)
        } else {
            self.counters.refused.add(1);
            Ok(false)
        };
        match taken {
            Ok(true) => self.counters.tx_bytes.add(size.into()),
            Ok(false) => {
                self.reset(id);
                return false;
            }
            // The program of the host's has gone: none of the guest's faults.
            Err(_) => self.reset(id),
        }
        true
    }

    /// A packet of no connection.
    fn stranger(&mut self, header: &Header, ports: (u32, u32), sources: &Sources) -> bool {
        match header.op {
            op::REQUEST => {
                let room = self.all.len() < MAX_CONNECTIONS;
                let socket = if room { self.listener.connect(header.dst_port).ok() } else { None };
                let id = socket.and_then(|socket| {
                    let mut connection = Connection::new(socket, State::Established, ports);
                    connection.learn(header);
                    self.add(connection, sources)
                });
                match id {
                    Some(id) => {
                        self.by_ports.insert(ports, id);
                        self.counters.connections.add(1);
                        self.answer(ports, op::RESPONSE, 0);
                    }
                    None => {
                        self.counters.rejected.add(1);
                        self.answer(ports, op::RESET, 0);
                    }
                }
                true
            }
            // The last of a connection that has ended here already.
            op::RESET | op::CREDIT_UPDATE => true,
            op::SHUTDOWN => {
                self.answer(ports, op::RESET, 0);
                true
            }
            _ => {
                self.answer(ports, op::RESET, 0);
                false
            }
        }
    }
}
