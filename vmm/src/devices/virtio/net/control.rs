//! The control queue of a network device (virtio 1.3, 5.1.6.5): how many pairs of queues are used, and what the guest does
//! itself.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::Counters;
use super::offloads::{GUEST_OFFLOADS, tap_offloads};
use super::tap::Tap;
use crate::devices::virtio::ring::{Chain, Ring};
use crate::devices::virtio::worker::{Service, Sources};
use crate::memory::guarded::DeviceView;

/// The longest command that there is: its class, its number, and eight bytes.
const MAX_COMMAND: usize = 10;

/// The control queue and what works on it.
pub(super) struct Control {
    pub ring: Ring,
    pub view: DeviceView,
    pub tap: Arc<Tap>,
    pub features: u64,
    /// How many pairs the guest may use.
    pub pairs: usize,
    /// Makes the thread of each pair look at its tap again.
    pub wake: Vec<OwnedFd>,
    pub counters: Arc<Counters>,
}

impl Service for Control {
    fn ready(&mut self, _: u64, sources: &Sources) -> ControlFlow<()> {
        let Self { ring, view, tap, features, pairs, wake, counters } = self;
        ring.serve(view, sources, |mut chain| {
            // The command may take its time, so the byte is let go of meanwhile.
            let Some(acknowledge) = chain.writable.take_last_byte() else {
                counters.failed.add(1);
                return 0;
            };
            if acknowledge.guard(view).is_err() {
                counters.failed.add(1);
                counters.refused.add(1);
                return 0;
            }
            let command = command(view, &chain, counters);
            let done = command.is_some_and(|command| obey(&command, tap, *features, *pairs, wake));
            if !done {
                counters.failed.add(1);
            }
            let answer = [if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8];
            acknowledge.guard(view).map_or(0, |mut byte| byte.copy_in(&answer) as u32)
        });
        ControlFlow::Continue(())
    }
}

fn command(view: &DeviceView, chain: &Chain, counters: &Counters) -> Option<Vec<u8>> {
    let size = usize::try_from(chain.readable.size()).ok()?;
    if !chain.whole || size > MAX_COMMAND {
        return None;
    }
    let mut bytes = vec![0; size];
    let mut buffers = chain.readable.guard(view).inspect_err(|_| counters.refused.add(1)).ok()?;
    buffers.copy_out(&mut bytes);
    Some(bytes)
}

fn obey(command: &[u8], tap: &Tap, features: u64, pairs: usize, wake: &[OwnedFd]) -> bool {
    let Some(([class, number], data)) = command.split_first_chunk() else { return false };
    match (u32::from(*class), u32::from(*number)) {
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            let Ok(count) = data.try_into().map(u16::from_le_bytes).map(usize::from) else { return false };
            let done = (1..=pairs).contains(&count) && tap.use_pairs(count).is_ok();
            for descriptor in wake {
                // It can't fail: the counter would have to be at its end.
                let _ = rustix::io::write(descriptor, &1u64.to_ne_bytes());
            }
            done
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            let Ok(offloads) = data.try_into().map(u64::from_le_bytes) else { return false };
            offloads & !(features & GUEST_OFFLOADS) == 0 && tap.set_offloads(tap_offloads(offloads)).is_ok()
        }
        _ => false,
    }
}
