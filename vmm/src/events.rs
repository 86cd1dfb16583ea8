//! The event monitor: what happens to a machine, as JSON objects in a file.
//!
//! The format is Cloud Hypervisor's: pretty-printed objects with `timestamp`, `source`, `event` and `properties`, each
//! followed by an empty line. One listener may be told of the same objects.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::chain;
use crate::memory::event::{MemoryEvent, MemoryObserver};

/// The least time between two events of refused accesses: a guest decides how many there are. They are all counted in the
/// statistics.
const REFUSAL_INTERVAL: Duration = Duration::from_millis(100);

/// Told of each event, on the thread that it happens on: it must not wait.
pub type Listener = dyn Fn(Value) + Send + Sync;

/// Where events go, if anywhere.
pub struct EventMonitor {
    file: OnceLock<Mutex<File>>,
    listener: OnceLock<Box<Listener>>,
    start: Instant,
}

impl Default for EventMonitor {
    fn default() -> Self {
        Self::new()
    }
}

impl EventMonitor {
    /// Events go nowhere until there is a file; timestamps count from now.
    pub fn new() -> Self {
        Self { file: OnceLock::new(), listener: OnceLock::new(), start: Instant::now() }
    }

    /// From here on, events go to this file. The first file counts.
    pub fn write_to(&self, file: File) {
        let _ = self.file.set(Mutex::new(file));
    }

    /// From here on, this one is told of events. The first listener counts.
    pub fn tell(&self, listener: Box<Listener>) {
        let _ = self.listener.set(listener);
    }

    /// Writes one event, and tells the listener. A file that can't be written is not worth stopping a machine for.
    pub fn emit(&self, source: &str, event: &str, properties: impl Serialize) {
        let (file, listener) = (self.file.get(), self.listener.get());
        if file.is_none() && listener.is_none() {
            return;
        }
        let since = self.start.elapsed();
        let event = json!({
            "timestamp": { "secs": since.as_secs(), "nanos": since.subsec_nanos() },
            "source": source,
            "event": event,
            "properties": serde_json::to_value(properties).unwrap_or(Value::Null),
        });
        if let Some(file) = file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = write!(file, "{event:#}\n\n").and_then(|()| file.flush()) {
                tracing::warn!("cannot write an event: {error}");
            }
        }
        if let Some(listener) = listener {
            listener(event);
        }
    }
}

/// Writes what happens to guest memory to the event monitor.
pub(crate) fn memory_observer(events: Arc<EventMonitor>) -> Arc<MemoryObserver> {
    let last_refusal: Mutex<Option<Instant>> = Mutex::new(None);
    Arc::new(move |event: &MemoryEvent<'_>| match event {
        MemoryEvent::Waiting { range, waited, owner } => {
            let properties = json!({
                "gpa": range.start(), "size": range.len(), "seconds": waited.as_secs(), "device": owner,
            });
            events.emit("memory", "conversion-waiting", properties);
        }
        MemoryEvent::AccessRefused(access) => {
            tracing::debug!("{access}");
            let mut last = last_refusal.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| last.elapsed() < REFUSAL_INTERVAL) {
                return;
            }
            *last = Some(Instant::now());
            let properties = json!({
                "gpa": access.gpa, "size": access.size, "page": access.page, "device": &*access.owner,
                "reason": access.obstacle.to_string(),
            });
            events.emit("memory", "access-refused", properties);
        }
        MemoryEvent::DiscardFailed { offset, size, side, source } => {
            let properties =
                json!({ "offset": offset, "size": size, "side": side.to_string(), "error": chain(source) });
            events.emit("memory", "discard-failed", properties);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn events_can_be_read_back_one_by_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let monitor = EventMonitor::new();
        monitor.emit("vm", "unheard", ());
        let (heard, told) = std::sync::mpsc::channel();
        monitor.tell(Box::new(move |event| heard.send(event).unwrap()));
        monitor.write_to(file.reopen().unwrap());
        monitor.emit("vm", "booted", ());
        monitor.emit("memory", "stats", json!({ "ram_bytes": 7 }));
        let mut text = String::new();
        file.reopen().unwrap().read_to_string(&mut text).unwrap();
        let events: Vec<Value> =
            serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(events[0]["event"], "booted");
        assert_eq!(events[1]["properties"]["ram_bytes"], 7);
        assert_eq!(text.matches("\n\n").count(), 2);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), events, "the listener is told the same");
    }
}
