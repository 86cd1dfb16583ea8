//! Events for whoever listens: a bounded ring of the last ones. A listener that is too slow misses some and learns how many.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::broadcast;
use vmm::events::EventMonitor;

/// How many events a listener may be behind.
const ROOM: usize = 256;

/// Passes events on.
pub struct Hub(Arc<Mutex<Option<broadcast::Sender<Arc<Value>>>>>);

impl Hub {
    /// Passes on what this monitor is told.
    pub(super) fn new(events: &EventMonitor) -> Self {
        let sender = Arc::new(Mutex::new(Some(broadcast::Sender::new(ROOM))));
        let hub = sender.clone();
        events.tell(Box::new(move |event| {
            if let Some(sender) = &*hub.lock().unwrap_or_else(PoisonError::into_inner) {
                // Nobody may be listening.
                let _ = sender.send(Arc::new(event));
            }
        }));
        Self(sender)
    }

    /// Events from now on; `None` once there will be no more.
    pub fn listen(&self) -> Option<broadcast::Receiver<Arc<Value>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(broadcast::Sender::subscribe)
    }

    /// There will be no more.
    pub(super) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
