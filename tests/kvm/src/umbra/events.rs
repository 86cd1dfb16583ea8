//! The event monitor's file, from which a machine's memory statistics are read.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Deserializer, Value};

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Figures about guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Statistics {
    /// All RAM, in bytes.
    pub ram_bytes: u64,
    /// RAM that is private, in bytes.
    pub private_bytes: u64,
    /// RAM that is shared, in bytes.
    pub shared_bytes: u64,
    /// Announced conversions that changed something.
    pub conversions_explicit: u64,
    /// Conversions that an access asked for.
    pub conversions_implicit: u64,
    /// The VMM's own conversions.
    pub conversions_host: u64,
    /// Requests that were refused or failed.
    pub conversions_failed: u64,
    /// Accesses that devices were refused.
    pub accesses_refused: u64,
    /// Memory that pages have left and that is not given back yet, in bytes.
    pub discard_backlog_bytes: u64,
}

/// The file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
}

impl EventFile {
    /// A file that may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The statistics that come after `ask`.
    ///
    /// # Errors
    /// None until then.
    pub fn statistics_after(
        &self,
        deadline: Instant,
        ask: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Statistics> {
        let before = self.statistics()?.len();
        ask()?;
        loop {
            if let Some(statistics) = self.statistics()?.get(before) {
                return Ok(*statistics);
            }
            if Instant::now() >= deadline {
                bail!("there are no new statistics in {}", self.path.display());
            }
            sleep(POLL);
        }
    }

    /// The last statistics in it.
    ///
    /// # Errors
    /// None at all.
    pub fn last_statistics(&self) -> anyhow::Result<Statistics> {
        self.statistics()?
            .last()
            .copied()
            .with_context(|| format!("there are no statistics in {}", self.path.display()))
    }

    fn statistics(&self) -> anyhow::Result<Vec<Statistics>> {
        let text = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        parse(&text)
    }
}

/// The statistics among complete events; the last event may still be being written.
fn parse(text: &str) -> anyhow::Result<Vec<Statistics>> {
    let mut found = Vec::new();
    for event in Deserializer::from_str(text).into_iter::<Value>() {
        match event {
            Ok(event) if event["source"] == "memory" && event["event"] == "stats" => {
                found.push(serde_json::from_value(event["properties"].clone()).context("cannot read statistics")?);
            }
            Ok(_) => {}
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error).context("cannot read events"),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{ "source": "vm", "event": "booted", "properties": null }

{ "source": "memory", "event": "stats", "properties": {
    "ram_bytes": 3, "private_bytes": 2, "shared_bytes": 1, "conversions_explicit": 4, "conversions_implicit": 5,
    "conversions_host": 6, "conversions_failed": 7, "accesses_refused": 8, "discard_backlog_bytes": 0 } }
"#;

    #[test]
    fn only_complete_statistics_are_read() {
        assert_eq!(parse(TEXT).unwrap().len(), 1);
        assert_eq!(parse(TEXT).unwrap()[0].conversions_failed, 7);
        assert_eq!(parse(&TEXT[..TEXT.len() - 3]).unwrap(), []);
        assert!(parse("booted").is_err());
    }
}
