//! What the full demonstration measured, how it is judged, and how it is shown.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::demo::figures::{Outcome, Summary, mebibytes, seconds};

/// How many processors the guest has.
const PROCESSORS: u64 = 2;

/// What was done with the system in unmappable memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Full {
    /// Processors that the guest uses.
    pub processors: u64,
    /// From exec of `umbra` to the first login over ssh.
    pub time_to_login_ms: u64,
    /// Bytes written to the disk, read back and compared.
    pub disk_bytes: u64,
    /// How long writing them took, until they were on the disk.
    pub disk_write_ms: u64,
    /// How long reading them took.
    pub disk_read_ms: u64,
    /// Bytes sent over the network in each direction, and compared.
    pub network_bytes: u64,
    /// How long those to the guest took.
    pub network_to_guest_ms: u64,
    /// How long those from the guest took.
    pub network_from_guest_ms: u64,
    /// Bytes written to the disk that was added, and found in its file.
    pub hot_disk_bytes: u64,
    /// Bytes that the guest sent while it was searched.
    pub busy_bytes: u64,
    /// How long pausing took.
    pub pause_ms: u64,
    /// How long resuming took.
    pub resume_ms: u64,
    /// Bytes of the window that were converted to shared and back.
    pub window_bytes: u64,
    /// Runs of the memory map.
    pub map_runs: u64,
    /// Metrics that were told.
    pub metrics: u64,
    /// Size of the picture.
    pub picture_bytes: u64,
    /// From the power button to the end of `umbra`.
    pub power_off_ms: u64,
    /// The most memory of the host that was behind guest RAM at a time.
    pub host_peak_bytes: u64,
    /// The most that the guest shared, of the moments at which it was looked at.
    pub shared_peak_bytes: u64,
}

/// All of it, the short demonstration's figures among it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullOutcome {
    /// Both isolations.
    pub demo: Outcome,
    /// With `isolation=software`.
    pub full: Full,
}

/// The figures for programs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FullSummary {
    #[serde(flatten)]
    demo: Summary,
    #[serde(flatten)]
    full: Full,
}

impl FullOutcome {
    /// The content of the `--json` file.
    pub fn summary(&self) -> FullSummary {
        FullSummary { demo: self.demo.summary(), full: self.full.clone() }
    }

    /// Everything that keeps the demonstration from being a success, in words; empty if it is one. What a step has to
    /// show it shows when it is made: one that could not ended the demonstration.
    pub fn shortcomings(&self) -> Vec<String> {
        let mut found = self.demo.shortcomings();
        if self.full.processors != PROCESSORS {
            found.push(format!("the guest uses {} processors, not {PROCESSORS}", self.full.processors));
        }
        for (what, amount) in [
            ("written to the disk", self.full.disk_bytes),
            ("sent over the network", self.full.network_bytes),
            ("written to the second disk", self.full.hot_disk_bytes),
            ("sent during the search", self.full.busy_bytes),
            ("converted in the window", self.full.window_bytes),
        ] {
            if amount == 0 {
                found.push(format!("nothing was {what}"));
            }
        }
        found
    }

    /// Host memory behind guest RAM at its peak, beyond what the guest shared, in parts of RAM.
    pub fn host_memory_ratio(&self) -> f64 {
        let own = self.full.host_peak_bytes.saturating_sub(self.full.shared_peak_bytes);
        own as f64 / self.demo.software.memory.ram_bytes as f64
    }
}

/// The table that the user sees.
impl fmt::Display for FullOutcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = &self.full;
        write!(out, "{}", self.demo)?;
        writeln!(out, "\nwith isolation=software")?;
        let mut line = |name: &str, cell: String| writeln!(out, "  {name:<38}{cell:>14}");
        line("processors", full.processors.to_string())?;
        line("time to the first login over ssh", seconds(full.time_to_login_ms))?;
        line("disk, written", rate(full.disk_bytes, full.disk_write_ms))?;
        line("disk, read and compared", rate(full.disk_bytes, full.disk_read_ms))?;
        line("network, to the guest", rate(full.network_bytes, full.network_to_guest_ms))?;
        line("network, from the guest", rate(full.network_bytes, full.network_from_guest_ms))?;
        line("second disk, added and filled", mebibytes(full.hot_disk_bytes))?;
        line("sent by the guest during the search", mebibytes(full.busy_bytes))?;
        line("time to pause", seconds(full.pause_ms))?;
        line("time to resume", seconds(full.resume_ms))?;
        line("window, to shared and back", mebibytes(full.window_bytes))?;
        line("runs of the memory map", full.map_runs.to_string())?;
        line("metrics", full.metrics.to_string())?;
        line("time from the power button to the end", seconds(full.power_off_ms))?;
        line("host memory behind guest RAM, peak", mebibytes(full.host_peak_bytes))?;
        line("  beyond what is shared, parts of RAM", format!("{:.3}", self.host_memory_ratio()))
    }
}

fn rate(bytes: u64, milliseconds: u64) -> String {
    let per_second = bytes as f64 / f64::from(1 << 20) * 1000.0 / milliseconds.max(1) as f64;
    format!("{per_second:.0} MiB/s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::figures::tests::success;

    fn outcome() -> FullOutcome {
        let full = Full {
            processors: 2,
            disk_bytes: 256 << 20,
            disk_write_ms: 2000,
            network_bytes: 64 << 20,
            hot_disk_bytes: 32 << 20,
            busy_bytes: 5,
            window_bytes: 16 << 20,
            host_peak_bytes: 520 << 20,
            shared_peak_bytes: 72 << 20,
            ..Full::default()
        };
        FullOutcome { demo: success(), full }
    }

    #[test]
    fn a_success_has_no_shortcomings_and_each_omission_is_one() {
        assert_eq!(outcome().shortcomings(), Vec::<String>::new());
        let changes: [fn(&mut FullOutcome); 7] = [
            |o| o.full.processors = 1,
            |o| o.full.disk_bytes = 0,
            |o| o.full.network_bytes = 0,
            |o| o.full.hot_disk_bytes = 0,
            |o| o.full.busy_bytes = 0,
            |o| o.full.window_bytes = 0,
            |o| o.demo.software.search.canary_hits = 1,
        ];
        for change in changes {
            let mut outcome = outcome();
            change(&mut outcome);
            assert_eq!(outcome.shortcomings().len(), 1);
        }
    }

    #[test]
    fn the_short_demonstrations_keys_are_among_the_summarys() {
        let full = serde_json::to_value(outcome().summary()).unwrap();
        let short = serde_json::to_value(success().summary()).unwrap();
        for (key, value) in short.as_object().unwrap() {
            assert_eq!(full.get(key), Some(value), "{key}");
        }
        assert_eq!(full["disk_bytes"], 256 << 20);
    }

    #[test]
    fn the_table_begins_as_the_short_one_does() {
        let table = outcome().to_string();
        assert!(table.starts_with(&success().to_string()), "{table}");
        assert!(table.contains("  disk, written                              128 MiB/s\n"), "{table}");
        assert!(table.ends_with("parts of RAM          0.875\n"), "{table}");
    }
}
