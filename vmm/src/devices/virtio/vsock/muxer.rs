//! The thread of a socket device: its two queues, and all connections.
//!
//! ```text
//! transmit queue ─► packets ─► connections ─► unix sockets
//! receive queue ◄─ answers and requests first, then data of the connections in turn
//! ```
//!
//! Guarantees:
//! * While more answers wait for buffers of the guest's than [`MAX_ANSWERS`], nothing more is read of what it transmits.
//! * Sockets are read only into buffers that are there, and only as far as the guest has room for.
//! * One call handles at most [`BATCH`] packets each way, and takes none of the guest's any more once the thread is called
//!   away: the guest chooses how large they are.

use std::ops::ControlFlow;

use vm_memory::GuestMemoryResult;

use super::connections::Connections;
use super::packet::HEADER;
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::ring::{BATCH, Chain, Ring};
use crate::devices::virtio::worker::{Service, Sources};
use crate::memory::guarded::DeviceView;

/// How many answers may wait for buffers of the guest's before it is not listened to.
pub const MAX_ANSWERS: usize = 256;

/// The most bytes of data of a packet for the guest.
const MAX_DATA: u32 = 64 << 10;

/// What is waited for: the queues by their numbers, the listener and its timer, and connections by numbers above these.
pub(super) const RECEIVE: u64 = 0;
pub(super) const TRANSMIT: u64 = 1;
pub(super) const LISTENER: u64 = 2;
pub(super) const TIMER: u64 = 3;

/// The queues and the connections.
pub(super) struct Muxer {
    pub receive: Ring,
    pub transmit: Ring,
    pub view: DeviceView,
    pub connections: Connections,
}

impl Service for Muxer {
    fn ready(&mut self, token: u64, sources: &Sources) -> ControlFlow<()> {
        match token {
            RECEIVE => self.receive.begin(&self.view),
            TRANSMIT => self.transmit(sources),
            LISTENER => self.connections.accept(sources),
            TIMER => self.connections.listen(sources),
            id => self.connections.ready(id, sources),
        }
        let full = self.connections.answers() >= MAX_ANSWERS;
        self.deliver(sources);
        if full && self.connections.answers() < MAX_ANSWERS {
            // There may be packets that were left alone.
            self.transmit.again();
        }
        ControlFlow::Continue(())
    }
}

impl Muxer {
    /// Handles what the guest transmits.
    fn transmit(&mut self, sources: &Sources) {
        let Self { transmit, view, connections, .. } = self;
        transmit.serve_while(view, sources, |chain| {
            if connections.answers() >= MAX_ANSWERS {
                // It is looked at again once there are fewer.
                return None;
            }
            if !connections.packet(view, chain, sources) {
                connections.counters().failed.add(1);
            }
            Some(0)
        });
    }

    /// Gives the guest what waits for it, as far as it has buffers.
    fn deliver(&mut self, sources: &Sources) {
        let Self { receive, view, connections, .. } = self;
        for _ in 0..BATCH {
            let Some(credit) = connections.next(sources) else { return receive.announce(view) };
            let Some(chain) = receive.take(view) else { return receive.announce(view) };
            let guarded = guard(view, &chain, credit.min(MAX_DATA));
            let Some(Ok((mut start, data))) = guarded else {
                connections.counters().failed.add(1);
                connections.counters().refused.add(guarded.is_some().into());
                receive.put_used(view, chain.head, 0);
                continue;
            };
            match connections.fill(data, sources) {
                Some(header) => {
                    start.copy_in(&header.to_bytes());
                    receive.put_used(view, chain.head, HEADER as u32 + header.len);
                }
                None => receive.put_back(1),
            }
        }
        receive.announce(view);
        receive.again();
    }
}

/// Guards room for a header, and for so many bytes of data; `None` if the chain makes no sense.
fn guard<'v>(view: &'v DeviceView, chain: &Chain, size: u32) -> Option<GuestMemoryResult<(Buffers<'v>, Buffers<'v>)>> {
    if !chain.whole || chain.readable.size() > 0 || chain.writable.size() <= HEADER as u64 {
        return None;
    }
    let mut rest = chain.writable.clone();
    let start = rest.take_first(HEADER as u32);
    let data = rest.take_first(size);
    Some(start.guard(view).and_then(|start| Ok((start, data.guard(view)?))))
}
