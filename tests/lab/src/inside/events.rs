//! Reads umbra's event monitor: a file of JSON objects, one after the other.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::demo::figures::MemoryStats;

/// One event.
#[derive(Debug, Deserialize)]
struct Event {
    source: String,
    event: String,
    #[serde(default)]
    properties: serde_json::Value,
}

/// The file that `umbra --event-monitor` writes.
pub struct EventFile(PathBuf);

impl EventFile {
    /// The file at this path, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &PathBuf {
        &self.0
    }

    /// All memory statistics written so far, oldest first.
    pub fn memory_stats(&self) -> Result<Vec<MemoryStats>> {
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.0.display())),
        };
        parse(&text).with_context(|| format!("umbra's events in {} are not as expected", self.0.display()))
    }
}

fn parse(text: &str) -> Result<Vec<MemoryStats>> {
    let mut stats = Vec::new();
    for event in serde_json::Deserializer::from_str(text).into_iter::<Event>() {
        let event = match event {
            Ok(event) => event,
            // The last one is being written.
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error.into()),
        };
        if event.source == "memory" && event.event == "stats" {
            stats.push(serde_json::from_value(event.properties).context("event memory/stats")?);
        }
    }
    Ok(stats)
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
        assert_eq!(parse(EVENTS).unwrap(), [expected]);
        assert_eq!(parse(&format!("{EVENTS}{EVENTS}")).unwrap(), [expected, expected]);
    }

    #[test]
    fn event_that_is_being_written_is_left_for_later() {
        for cut in 0..EVENTS.trim_end().len() {
            assert_eq!(parse(&EVENTS[..cut]).unwrap(), [], "{cut}");
        }
    }

    #[test]
    fn foreign_text_is_an_error() {
        assert!(parse("booted").is_err());
        assert!(parse(r#"{"source": "memory", "event": "stats", "properties": {"ram_bytes": 1}}"#).is_err());
    }
}
