//! Reads umbra's event monitor: a file of JSON objects, one after the other.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::demo::figures::MemoryStats;

/// One event.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// What it is about.
    source: String,
    /// What happened.
    event: String,
    #[serde(default)]
    properties: serde_json::Value,
}

/// How a guest was reset that should run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// It crashed so badly that a PC resets.
    TripleFault,
    /// It asked for it.
    Asked,
}

/// The file that `umbra --event-monitor` writes.
#[derive(Clone, Debug)]
pub struct EventFile(PathBuf);

impl EventFile {
    /// The file at this path, for an umbra that is about to start. What an earlier one told there is gone: umbra itself leaves
    /// it until its machine is built.
    pub fn create(path: PathBuf) -> Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(Self(path)),
        }
    }

    /// Its path.
    pub fn path(&self) -> &PathBuf {
        &self.0
    }

    /// All memory statistics written so far, oldest first.
    pub fn memory_stats(&self) -> Result<Vec<MemoryStats>> {
        let stats = self.read()?.into_iter().filter(|event| event.is("memory", "stats"));
        stats.map(|event| serde_json::from_value(event.properties).context("event memory/stats")).collect()
    }

    /// The first reset, if there has been one.
    pub fn reset(&self) -> Result<Option<Reset>> {
        Ok(self.read()?.iter().find(|event| event.is("vm", "rebooting")).map(Event::reset))
    }

    fn read(&self) -> Result<Vec<Event>> {
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.0.display())),
        };
        parse(&text).with_context(|| format!("umbra's events in {} are not as expected", self.0.display()))
    }
}

impl Event {
    fn is(&self, source: &str, event: &str) -> bool {
        self.source == source && self.event == event
    }

    fn reset(&self) -> Reset {
        if self.properties["cause"] == "triple-fault" { Reset::TripleFault } else { Reset::Asked }
    }
}

fn parse(text: &str) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for event in serde_json::Deserializer::from_str(text).into_iter() {
        match event {
            Ok(event) => events.push(event),
            // The last one is being written.
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = r#"{
  "timestamp": { "secs": 0, "nanos": 5 },
  "source": "vm",
  "event": "booted",
  "properties": null
}

{
  "timestamp": { "secs": 4, "nanos": 5 },
  "source": "memory",
  "event": "stats",
  "properties": {
    "ram_bytes": 10, "private_bytes": 9, "shared_bytes": 1,
    "conversions_explicit": 2, "conversions_implicit": 3, "conversions_failed": 4
  }
}

"#;

    const REBOOTING: &str = r#"{"source": "vm", "event": "rebooting", "properties": "#;

    fn file(text: &str) -> (tempfile::TempDir, EventFile) {
        let folder = tempfile::tempdir().unwrap();
        let events = EventFile::create(folder.path().join("events")).unwrap();
        std::fs::write(events.path(), text).unwrap();
        (folder, events)
    }

    #[test]
    fn statistics_are_picked_from_the_events() {
        let expected = MemoryStats {
            ram_bytes: 10,
            private_bytes: 9,
            shared_bytes: 1,
            conversions_explicit: 2,
            conversions_implicit: 3,
            conversions_failed: 4,
        };
        let (_folder, events) = file(&format!("{EVENTS}{EVENTS}"));
        assert_eq!(events.memory_stats().unwrap(), [expected, expected]);
        assert_eq!(events.reset().unwrap(), None);
    }

    #[test]
    fn what_an_earlier_umbra_told_is_gone_and_a_file_that_is_not_there_yet_has_no_events() {
        let (_folder, events) = file(&format!("{REBOOTING}null}}"));
        let events = EventFile::create(events.path().clone()).unwrap();
        assert_eq!((events.memory_stats().unwrap(), events.reset().unwrap()), (Vec::new(), None));
    }

    #[test]
    fn event_that_is_being_written_is_left_for_later() {
        let first = EVENTS.find("\n\n").unwrap();
        for cut in 0..EVENTS.trim_end().len() {
            assert_eq!(parse(&EVENTS[..cut]).unwrap().len(), usize::from(cut >= first), "{cut}");
        }
    }

    #[test]
    fn a_crash_is_told_from_a_reset_that_the_guest_asked_for() {
        let crash = format!("{REBOOTING}{{\"cause\": \"triple-fault\"}}}}");
        let asked = format!("{REBOOTING}null}}");
        for (text, expected) in [(&crash, Reset::TripleFault), (&asked, Reset::Asked)] {
            let (_folder, events) = file(&format!("{EVENTS}{text}{EVENTS}"));
            assert_eq!(events.reset().unwrap(), Some(expected));
        }
    }

    #[test]
    fn foreign_text_is_an_error() {
        assert!(parse("booted").is_err());
        let (_folder, events) = file(r#"{"source": "memory", "event": "stats", "properties": {"ram_bytes": 1}}"#);
        assert!(events.memory_stats().is_err());
    }
}
