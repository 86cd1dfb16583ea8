//! What the thread of a console does: carries input to the guest, and its output away.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{ConsoleInput, Counters, INPUT, MAX_OUTPUT, Output, RECEIVE, SharedOutput, TIMER};
use crate::devices::virtio::ring::{BATCH, Chain, Ring};
use crate::devices::virtio::timer::Timer;
use crate::devices::virtio::worker::{Service, Sources};
use crate::memory::guarded::DeviceView;

/// When an output is asked again that would have blocked.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// The port and its queues.
pub(super) struct Port {
    pub receive: Ring,
    pub transmit: Ring,
    pub view: DeviceView,
    pub output: SharedOutput,
    pub input: Arc<ConsoleInput>,
    /// Runs while an output would block.
    pub timer: Timer,
    pub counters: Arc<Counters>,
}

impl Service for Port {
    fn ready(&mut self, token: u64, _: &Sources) -> ControlFlow<()> {
        match token {
            INPUT => {
                let _ = rustix::io::read(&*self.input, &mut [0; 8]);
                self.receive();
            }
            TIMER => {
                self.timer.take();
                self.transmit();
            }
            token if token == u64::from(RECEIVE) => {
                self.receive.begin(&self.view);
                self.receive();
            }
            _ => {
                self.transmit.begin(&self.view);
                self.transmit();
            }
        }
        ControlFlow::Continue(())
    }
}

impl Port {
    /// Gives the guest what input there is.
    fn receive(&mut self) {
        let Self { receive, view, input, counters, .. } = self;
        for _ in 0..BATCH {
            let mut held = input.held();
            if held.is_empty() {
                return receive.announce(view);
            }
            let Some(chain) = receive.take(view) else { return receive.announce(view) };
            let written = fill(view, counters, &chain, &mut held);
            drop(held);
            receive.put_used(view, chain.head, written);
        }
        receive.announce(view);
        receive.again();
    }

    /// Gives the output what the guest wrote.
    fn transmit(&mut self) {
        let Self { transmit, view, output, counters, timer, .. } = self;
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..BATCH {
            if !put_out(&mut output, counters) {
                timer.start(ASK_AGAIN);
                return transmit.announce(view);
            }
            let Some(chain) = transmit.take(view) else { return transmit.announce(view) };
            take_over(view, counters, &chain, &mut output.pending);
            transmit.put_used(view, chain.head, 0);
        }
        transmit.announce(view);
        transmit.again();
    }
}

/// Fills a chain with input, and says with how much.
fn fill(view: &DeviceView, counters: &Counters, chain: &Chain, held: &mut VecDeque<u8>) -> u32 {
    let sound = chain.whole && chain.readable.size() == 0;
    let buffers = if sound { chain.writable.guard(view).inspect_err(|_| counters.refused.add(1)).ok() } else { None };
    let Some(mut buffers) = buffers else {
        counters.failed.add(1);
        return 0;
    };
    let count = buffers.copy_in(held.make_contiguous());
    held.drain(..count);
    counters.input_bytes.add(count as u64);
    // It fits: no more than MAX_INPUT is held.
    count as u32
}

/// Takes over what a chain of the guest's says.
fn take_over(view: &DeviceView, counters: &Counters, chain: &Chain, pending: &mut VecDeque<u8>) {
    let size = chain.readable.size();
    if !chain.whole || size > MAX_OUTPUT as u64 {
        return counters.failed.add(1);
    }
    let Ok(mut buffers) = chain.readable.guard(view) else {
        counters.refused.add(1);
        return counters.failed.add(1);
    };
    let mut bytes = vec![0; size as usize];
    buffers.copy_out(&mut bytes);
    pending.extend(bytes);
}

/// Writes what is pending. `false` if the output would block.
pub(super) fn put_out(output: &mut Output, counters: &Counters) -> bool {
    let Output { to, pending } = output;
    while !pending.is_empty() {
        match to.write(pending.make_contiguous()) {
            Ok(count) if count > 0 => {
                pending.drain(..count);
                counters.output_bytes.add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            result => {
                if counters.lost_bytes.get() == 0 {
                    tracing::warn!("output of the console is lost: {result:?}");
                }
                counters.lost_bytes.add(pending.len() as u64);
                pending.clear();
            }
        }
    }
    if let Err(error) = to.flush() {
        tracing::debug!("the console's output can't be flushed: {error}");
    }
    true
}
