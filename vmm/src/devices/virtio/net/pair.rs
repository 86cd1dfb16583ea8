//! One pair of queues and its queue of the tap: what a thread of a network device works on.
//!
//! Frames of the guest's go to the tap with one call each, straight out of its buffers. Frames for it are read straight into
//! its buffers: into as many as the last one took, since their size is not known before, and what does not fit there goes by
//! way of a buffer of this thread's.
//!
//! Guarantees:
//! * A frame that can't be delivered is dropped and counted, and the next one gets its turn. A tap that fails is asked again.
//! * Where the guest has no buffers, frames stay with the tap, which drops what is too much; the thread sleeps.
//! * One call handles at most [`BATCH`] frames of a direction.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;

use super::tap::Tap;
use super::{Counters, HEADER};
use crate::devices::virtio::buffers::{Buffers, read_packet};
use crate::devices::virtio::ring::{BATCH, Chain, Ring};
use crate::devices::virtio::worker::{Service, Sources};
use crate::memory::guarded::DeviceView;

/// The most bytes of a frame, its header among them: 64 KiB of packet, and what is before it.
pub const MAX_FRAME: usize = HEADER + 18 + 65536;

/// The least: the header, and two hardware addresses with a type.
const MIN_FRAME: usize = HEADER + 14;

/// The most pieces of a chain for a frame, and the most that are got ready for one: together fewer than a call takes.
const MAX_PIECES: usize = 500;

/// The most chains that one frame takes: enough for the largest with buffers of 256 bytes.
const MAX_PLACES: usize = 320;

/// How often a tap may fail, without a frame in between, before it is left alone until the guest has new buffers.
const MAX_FAILURES: usize = 64;

/// Stands for the size of a place in which there is none.
const NO_USE: usize = 0;

/// Where the number of buffers of a frame is in its header (virtio 1.3, 5.1.6).
const NUM_BUFFERS: usize = 10;

pub(super) const RECEIVE: u64 = 0;
pub(super) const TRANSMIT: u64 = 1;
const TAP: u64 = 2;

/// A pair of queues.
pub(super) struct Pair {
    pub number: usize,
    pub receive: Ring,
    pub transmit: Ring,
    pub view: DeviceView,
    pub tap: Arc<Tap>,
    pub counters: Arc<Counters>,
    /// Whether a frame may take several buffers.
    pub mergeable: bool,
    pub spill: Box<[u8]>,
    /// Whether the thread waits for the tap.
    pub listening: bool,
    /// Bytes of the frame before.
    pub expected: usize,
    /// How often the tap has failed since the last frame.
    pub failures: usize,
}

/// A buffer for a frame, by the head of its chain.
struct Place<'v> {
    head: u16,
    size: usize,
    buffers: Buffers<'v>,
}

/// How receiving a frame ended.
enum Received {
    Frame,
    /// There is none.
    Nothing,
    /// There is no place for one.
    NoPlace,
    /// The tap's queue is gone or detached, or fails again and again.
    NoTap,
}

impl Service for Pair {
    fn ready(&mut self, token: u64, sources: &Sources) -> ControlFlow<()> {
        match token {
            RECEIVE => {
                self.receive.begin(&self.view);
                self.failures = 0;
                self.listen(sources, true);
            }
            TRANSMIT => self.transmit(sources),
            _ => self.receive(sources),
        }
        ControlFlow::Continue(())
    }
}

impl Pair {
    fn listen(&mut self, sources: &Sources, listen: bool) {
        if listen == self.listening {
            return;
        }
        let queue = self.tap.queue(self.number);
        let result = if listen { sources.add(queue, TAP, EventFlags::IN) } else { sources.remove(queue) };
        match result {
            Ok(()) => self.listening = listen,
            Err(error) => tracing::warn!("{} can't be waited for: {error}", self.tap.name()),
        }
    }

    fn transmit(&mut self, sources: &Sources) {
        let Self { transmit, view, tap, counters, number, .. } = self;
        transmit.serve(view, sources, |chain| {
            send(view, tap, *number, counters, &chain);
            0
        });
    }

    fn receive(&mut self, sources: &Sources) {
        for _ in 0..BATCH {
            match self.receive_frame() {
                Received::Frame => {}
                Received::Nothing => break,
                Received::NoPlace | Received::NoTap => {
                    self.listen(sources, false);
                    break;
                }
            }
        }
        self.receive.announce(&self.view);
    }

    fn receive_frame(&mut self) -> Received {
        let Self { receive, view, counters, spill, .. } = self;
        let wanted = if self.mergeable { self.expected } else { 1 };
        let mut places = places(receive, view, counters, wanted);
        if places.is_empty() {
            return Received::NoPlace;
        }
        let buffers: Vec<_> = places.iter_mut().map(|place| std::mem::take(&mut place.buffers)).collect();
        let (size, fitted) = match read_packet(self.tap.queue(self.number), &buffers, spill) {
            Ok(read) => read,
            Err(error) => {
                receive.put_back(places.len());
                if error.kind() == io::ErrorKind::WouldBlock {
                    return Received::Nothing;
                }
                self.failures += 1;
                // What a queue that is detached says (Linux drivers/net/tun.c).
                if error.raw_os_error() == Some(libc::EBADFD) || self.failures > MAX_FAILURES {
                    return Received::NoTap;
                }
                counters.rx_dropped.add(1);
                return Received::Frame;
            }
        };
        self.failures = 0;
        let first = buffers.into_iter().next().unwrap_or_default();
        let rest = &spill[..(size - fitted).min(spill.len())];
        // More than there was room for may have been cut off.
        let whole = rest.len() < spill.len() && (rest.is_empty() || self.mergeable);
        if !(MIN_FRAME..=MAX_FRAME).contains(&size) || !whole || !put_rest(receive, view, counters, &mut places, rest) {
            receive.put_back(places.len());
            counters.rx_dropped.add(1);
            return Received::Frame;
        }
        use_places(receive, view, &places, first, size);
        self.expected = size;
        counters.rx_frames.add(1);
        counters.rx_bytes.add((size - HEADER) as u64);
        Received::Frame
    }
}

/// Sends one frame of the guest's.
fn send(view: &DeviceView, tap: &Tap, queue: usize, counters: &Counters, chain: &Chain) {
    let size = chain.readable.size();
    let sound = chain.whole && chain.writable.size() == 0 && (MIN_FRAME as u64..=MAX_FRAME as u64).contains(&size);
    if !sound {
        counters.failed.add(1);
        return counters.tx_dropped.add(1);
    }
    let Ok(mut buffers) = chain.readable.guard(view) else {
        counters.failed.add(1);
        counters.refused.add(1);
        return counters.tx_dropped.add(1);
    };
    match buffers.write(tap.queue(queue)) {
        Ok(_) => {
            counters.tx_frames.add(1);
            counters.tx_bytes.add(size - HEADER as u64);
        }
        // A full queue, a header that makes no sense, an interface that is down: as on a wire.
        Err(_) => counters.tx_dropped.add(1),
    }
}

/// Takes chains with room for so many bytes, at least one. A chain that is none of use goes back to the guest empty.
fn places<'v>(ring: &mut Ring, view: &'v DeviceView, counters: &Counters, wanted: usize) -> Vec<Place<'v>> {
    let (mut places, mut room, mut pieces) = (Vec::new(), 0, 0);
    for _ in 0..BATCH {
        if room >= wanted.max(1) || pieces >= MAX_PIECES {
            return places;
        }
        let Some(chain) = ring.take(view) else { return places };
        match place(view, counters, &chain) {
            Some(place) => {
                (room, pieces) = (room + place.size, pieces + place.buffers.pieces());
                places.push(place);
            }
            None if places.is_empty() => ring.put_used(view, chain.head, 0),
            // It gets its turn when it is the first: chains are put back in the order in which they were taken.
            None => {
                ring.put_back(1);
                return places;
            }
        }
    }
    if places.is_empty() {
        // There may be more, of which nobody will tell.
        ring.again();
    }
    places
}

/// A chain that a frame can be put into.
fn place<'v>(view: &'v DeviceView, counters: &Counters, chain: &Chain) -> Option<Place<'v>> {
    let sound = chain.whole && chain.readable.size() == 0 && chain.writable.size() >= HEADER as u64;
    let buffers = if sound { chain.writable.guard(view).inspect_err(|_| counters.refused.add(1)).ok() } else { None };
    let buffers = buffers.filter(|buffers| buffers.pieces() <= MAX_PIECES);
    if buffers.is_none() {
        counters.failed.add(1);
    }
    buffers.map(|buffers| Place { head: chain.head, size: buffers.size(), buffers })
}

/// Puts what did not fit into further chains. `false` if there are too few; those taken are among the places all the same.
fn put_rest<'v>(
    ring: &mut Ring,
    view: &'v DeviceView,
    counters: &Counters,
    places: &mut Vec<Place<'v>>,
    mut rest: &[u8],
) -> bool {
    while !rest.is_empty() && places.len() < MAX_PLACES {
        let Some(chain) = ring.take(view) else { return false };
        let place = place(view, counters, &chain);
        let size = place.as_ref().map_or(NO_USE, |place| place.size);
        places.push(Place { head: chain.head, size, buffers: Buffers::default() });
        if let Some(mut place) = place {
            rest = &rest[place.buffers.copy_in(rest)..];
        }
    }
    rest.is_empty()
}

/// Hands the chains that a frame took to the guest, behind them those that were of no use, and puts the others back.
fn use_places(ring: &mut Ring, view: &DeviceView, places: &[Place<'_>], mut first: Buffers<'_>, size: usize) {
    let (of_use, of_none): (Vec<&Place<'_>>, Vec<&Place<'_>>) = places.iter().partition(|place| place.size != NO_USE);
    let mut left = size;
    let taken = of_use.iter().map_while(|place| {
        let part = place.size.min(left);
        left -= part;
        (part > 0).then_some((place.head, part))
    });
    let taken: Vec<_> = taken.collect();
    first.skip(NUM_BUFFERS);
    first.copy_in(&(taken.len() as u16).to_le_bytes());
    for (head, part) in &taken {
        ring.put_used(view, *head, *part as u32);
    }
    for place in &of_none {
        ring.put_used(view, place.head, 0);
    }
    // There are none of no use where some were not needed: those are taken only when all before are full.
    ring.put_back(of_use.len() - taken.len());
}
