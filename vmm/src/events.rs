//! The event monitor: what happens to a machine, as JSON objects in a file.
//!
//! The format is Cloud Hypervisor's: pretty-printed objects with `timestamp`, `source`, `event` and `properties`, each
//! followed by an empty line. One listener may be told of the same objects. A file that is written only if all goes well
//! ([`EventMonitor::hold`]) gets what was told before as well.
//!
//! Guarantees: whoever has an event to tell never waits for the file's reader. What a pipe does not take at once is held, up
//! to [`MAX_HELD`] bytes, and written by a thread that lives no longer than that takes; an event that does not fit there is
//! dropped as a whole, counted, and told in the log. A file that takes everything has an event as soon as it is told.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::{Value, json};

use crate::devices::virtio::console::output::PromptOutput;
use crate::error::chain;
use crate::memory::event::{MemoryEvent, MemoryObserver};

/// The least time between two events of refused accesses: a guest decides how many there are. They are all counted in the
/// statistics.
const REFUSAL_INTERVAL: Duration = Duration::from_millis(100);

/// The most bytes of events that are held for a reader.
pub const MAX_HELD: usize = 1 << 20;

/// How long the end of the monitor waits for a reader of what is held.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// How often a thread that waits for a reader looks whether anybody wants more of it.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Told of each event, on the thread that it happens on: it must not wait.
pub type Listener = dyn Fn(Value) + Send + Sync;

/// Where events go, if anywhere.
pub struct EventMonitor {
    file: OnceLock<Arc<Stream>>,
    /// Events for a file that is to come, if one is.
    early: Mutex<Option<Vec<u8>>>,
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
        Self { file: OnceLock::new(), early: Mutex::default(), listener: OnceLock::new(), start: Instant::now() }
    }

    /// From here on, events are held, up to [`MAX_HELD`] bytes of them, for the file that is to come.
    pub fn hold(&self) {
        let mut early = self.early();
        if self.file.get().is_none() {
            early.get_or_insert_default();
        }
    }

    /// From here on, events go to this file, those first that were held for it. The first file counts.
    pub fn write_to(&self, file: File) {
        let file: Arc<OwnedFd> = Arc::new(file.into());
        let held = Held { output: PromptOutput::new(file.clone()), bytes: VecDeque::new(), dropped: 0, writing: false };
        // Locked until they are written, so that nothing overtakes them.
        let mut early = self.early();
        let file = self.file.get_or_init(|| Arc::new(Stream { file, held: Mutex::new(held) }));
        if let Some(events) = early.take() {
            Stream::tell(file, &events);
        }
    }

    fn early(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        // Nothing in here panics half-way.
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an event to the file, or holds it for the one that is to come.
    fn write(&self, event: &[u8]) {
        let mut early = self.early();
        match (&mut *early, self.file.get()) {
            (Some(held), _) if held.len() + event.len() <= MAX_HELD => held.extend(event),
            (Some(_), _) => tracing::warn!("there is no file for events yet: one is lost"),
            (None, Some(file)) => {
                drop(early);
                Stream::tell(file, event);
            }
            (None, None) => {}
        }
    }

    /// From here on, this one is told of events. The first listener counts.
    pub fn tell(&self, listener: Box<Listener>) {
        let _ = self.listener.set(listener);
    }

    /// Writes one event, and tells the listener. A file that can't be written is not worth stopping a machine for.
    pub fn emit(&self, source: &str, event: &str, properties: impl Serialize) {
        let listener = self.listener.get();
        let written = self.file.get().is_some() || self.early().is_some();
        if !written && listener.is_none() {
            return;
        }
        let since = self.start.elapsed();
        let event = json!({
            "timestamp": { "secs": since.as_secs(), "nanos": since.subsec_nanos() },
            "source": source,
            "event": event,
            "properties": serde_json::to_value(properties).unwrap_or(Value::Null),
        });
        if written {
            self.write(format!("{event:#}\n\n").as_bytes());
        }
        if let Some(listener) = listener {
            listener(event);
        }
    }
}

impl Drop for EventMonitor {
    fn drop(&mut self) {
        let Some(file) = self.file.get() else { return };
        let start = Instant::now();
        while !file.held().put_out() && start.elapsed() < LAST_WAIT {
            file.wait();
        }
    }
}

/// The file.
struct Stream {
    file: Arc<OwnedFd>,
    held: Mutex<Held>,
}

/// What its reader has not taken yet.
struct Held {
    output: PromptOutput,
    bytes: VecDeque<u8>,
    /// Events that there was no room for, since the reader last had everything.
    dropped: u64,
    /// There is a thread that writes what is held.
    writing: bool,
}

impl Stream {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing in here panics half-way.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the file takes something, but not for long.
    fn wait(&self) {
        // Whoever calls looks again.
        let _ = poll(&mut [PollFd::new(&*self.file, PollFlags::OUT)], Some(&LOOK));
    }

    fn tell(stream: &Arc<Self>, event: &[u8]) {
        let mut held = stream.held();
        if held.bytes.len() + event.len() > MAX_HELD {
            held.dropped += 1;
            if held.dropped == 1 {
                tracing::warn!("nobody reads the event monitor: events are lost");
            }
            return;
        }
        held.bytes.extend(event);
        if held.put_out() || held.writing {
            return;
        }
        let writer = stream.clone();
        let write = move || {
            loop {
                writer.wait();
                let mut held = writer.held();
                // The monitor has gone, and has tried to write what was left.
                let alone = Arc::strong_count(&writer) == 1;
                if alone || held.put_out() {
                    held.writing = false;
                    return;
                }
            }
        };
        // Without a thread the next event does it.
        held.writing = std::thread::Builder::new().name("events".into()).spawn(write).is_ok();
    }
}

impl Held {
    /// Writes what the file takes without waiting. Returns whether that was all. A file that can't be written is not worth
    /// stopping a machine for.
    fn put_out(&mut self) -> bool {
        while !self.bytes.is_empty() {
            match self.output.write(self.bytes.make_contiguous()) {
                Ok(written) if written > 0 => drop(self.bytes.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                result => {
                    tracing::warn!("cannot write an event: {result:?}");
                    self.bytes.clear();
                }
            }
        }
        if self.dropped > 0 {
            tracing::warn!("{} events were lost, since nobody read the event monitor", self.dropped);
            self.dropped = 0;
        }
        true
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
            drop(last);
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
    fn nobody_waits_for_a_reader_and_what_is_written_is_whole() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let monitor = EventMonitor::new();
        monitor.write_to(writer.into());
        // More than a pipe takes and is held.
        let filling = "x".repeat(10_000);
        for number in 0..200 {
            monitor.emit("vm", "told", json!({ "number": number, "filling": filling }));
        }
        let dropped = monitor.file.get().unwrap().held().dropped;
        assert!((1..200).contains(&dropped), "{dropped}");
        // What is held arrives although nothing more happens, and then there is room again.
        let mut reader = File::from(reader);
        let mut text = Vec::new();
        let mut part = vec![0; 64 << 10];
        while !monitor.file.get().unwrap().held().bytes.is_empty() {
            let count = reader.read(&mut part).unwrap();
            text.extend_from_slice(&part[..count]);
        }
        let reading = std::thread::spawn(move || {
            reader.read_to_end(&mut text).unwrap();
            text
        });
        monitor.emit("vm", "last", ());
        drop(monitor);
        let text = reading.join().unwrap();
        let events: Vec<Value> =
            serde_json::Deserializer::from_slice(&text).into_iter().collect::<Result<_, _>>().unwrap();
        let (last, events) = events.split_last().unwrap();
        assert_eq!((last["event"].as_str(), events.len() as u64), (Some("last"), 200 - dropped));
        assert!((0..).zip(events).all(|(number, event)| event["properties"]["number"] == number));
    }

    #[test]
    fn a_file_that_comes_later_gets_what_was_held_for_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let monitor = EventMonitor::new();
        monitor.emit("vm", "unheard", ());
        monitor.hold();
        monitor.emit("vmm", "starting", ());
        // There is no more room for this one, and still for the next.
        monitor.emit("vm", "large", "x".repeat(MAX_HELD));
        monitor.emit("vm", "created", ());
        monitor.write_to(file.reopen().unwrap());
        monitor.hold();
        monitor.emit("vm", "booted", ());
        let text = std::fs::read_to_string(file.path()).unwrap();
        let events = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let names: Vec<_> = events.map(|event| event.unwrap()["event"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["starting", "created", "booted"]);
    }

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
