//! The events by which a driver tells a device of a queue: an address each, which KVM serves without leaving the guest.
//!
//! Dropped, they are taken away.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hypervisor::Vm;
use rustix::event::{EventfdFlags, eventfd};

/// How far apart the queues' addresses are (`notify_off_multiplier`).
pub(super) const STRIDE: u64 = 4;

/// The events of an active device's queues.
pub(super) struct Notifiers {
    vm: Arc<dyn Vm>,
    queues: Vec<Notifier>,
}

struct Notifier {
    queue: u16,
    event: OwnedFd,
    /// The address that KVM serves.
    wired: Option<u64>,
}

impl Notifiers {
    pub(super) fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm, queues: Vec::new() }
    }

    /// Makes the event of a queue, and returns the device's end of it.
    pub(super) fn add(&mut self, queue: u16) -> io::Result<OwnedFd> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let device = event.try_clone()?;
        self.queues.push(Notifier { queue, event, wired: None });
        Ok(device)
    }

    /// Tells KVM where the addresses begin, if anywhere. What it doesn't take comes as writes to [`Notifiers::notify`].
    pub(super) fn place(&mut self, base: Option<u64>) {
        for notifier in &mut self.queues {
            if let Some(address) = notifier.wired.take()
                && let Err(error) = self.vm.unregister_ioeventfd(notifier.event.as_fd(), address)
            {
                tracing::warn!("{}", crate::error::chain(&error));
            }
            let Some(address) = base.map(|base| base + STRIDE * u64::from(notifier.queue)) else { continue };
            match self.vm.register_ioeventfd(notifier.event.as_fd(), address) {
                Ok(()) => notifier.wired = Some(address),
                Err(error) => tracing::debug!("{}", crate::error::chain(&error)),
            }
        }
    }

    /// Tells the device to look at a queue.
    pub(super) fn notify(&self, queue: u16) {
        if let Some(notifier) = self.queues.iter().find(|notifier| notifier.queue == queue) {
            notifier.notify();
        }
    }

    /// Tells the device to look at all queues.
    pub(super) fn notify_all(&self) {
        self.queues.iter().for_each(Notifier::notify);
    }
}

impl Notifier {
    fn notify(&self) {
        // It fails only if the counter is at its end, and then the device knows.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl Drop for Notifiers {
    fn drop(&mut self) {
        self.place(None);
    }
}
