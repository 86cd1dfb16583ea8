//! Throughput of a guest's disk and network, from the times that the lab's guests took.
//!
//! | key | what |
//! |---|---|
//! | `io.<transfer>.none_ratio` | time with `isolation=software`, to that with `isolation=none` |
//! | `io.<transfer>.swiotlb_share` | of the time with `software`: what swiotlb adds to `none` |
//! | `io.<transfer>.rest_ratio` | time with `software`, to that with `none` and swiotlb: what is not swiotlb |
//!
//! A transfer is `disk_write`, `disk_read` (both direct, so past the guest's cache), `network_in` or `network_out` (one TCP
//! connection). With `software`, devices reach only memory that is open to them, so Linux copies each byte once between it
//! and its private memory: its swiotlb does. A third guest has `none` and the same swiotlb, because it is told to
//! (`swiotlb=force`). All live at the same time and make their transfers in turns. Each figure is the median of the turns' own:
//! what else runs on the machine comes and goes, and mostly meets all transfers of a turn.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::figures::{Figures, Sample};

const TRANSFERS: [&str; 4] = ["disk_write", "disk_read", "network_in", "network_out"];
const KINDS: [&str; 3] = ["none", "swiotlb", "software"];

/// What the lab's guests took.
#[derive(Debug, Deserialize)]
struct Record {
    /// Of each transfer.
    bytes: f64,
    /// Nanoseconds of each round, by kind of machine and transfer.
    times: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

/// Takes the times from the lab's file.
///
/// # Errors
/// A file that can't be read, or lacks times.
pub fn run(figures: &mut Figures, times: &Path) -> Result<()> {
    let text = std::fs::read_to_string(times).with_context(|| format!("cannot read {}", times.display()))?;
    let record =
        serde_json::from_str(&text).with_context(|| format!("{} is not what it should be", times.display()))?;
    add(figures, &record)
}

fn add(figures: &mut Figures, record: &Record) -> Result<()> {
    for transfer in TRANSFERS {
        let get = |kind: &str| {
            let times = record.times.get(kind).and_then(|times| times.get(transfer));
            times
                .filter(|times| !times.is_empty())
                .with_context(|| format!("there are no times of {transfer} with {kind}"))
        };
        let [none, swiotlb, software] = [get(KINDS[0])?, get(KINDS[1])?, get(KINDS[2])?];
        ensure!(
            none.len() == software.len() && swiotlb.len() == software.len(),
            "not all guests made {transfer} equally often"
        );
        let turns =
            || none.iter().zip(swiotlb).zip(software).map(|((none, swiotlb), software)| (none, swiotlb, software));
        let ratio = turns().map(|(none, _, software)| software / none);
        let share = turns().map(|(none, swiotlb, software)| (swiotlb - none) / software);
        let rest = turns().map(|(_, swiotlb, software)| software / swiotlb);
        figures.add(format!("io.{transfer}.none_ratio"), Sample::of(ratio));
        figures.add(format!("io.{transfer}.swiotlb_share"), Sample::of(share));
        figures.add(format!("io.{transfer}.rest_ratio"), Sample::of(rest));
        for (kind, times) in KINDS.into_iter().zip([none, swiotlb, software]) {
            let rates = times.iter().map(|nanoseconds| record.bytes / (nanoseconds / 1e9));
            figures.note(format!("io.{transfer}.{kind}_per_second_bytes"), Sample::of(rates));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn record() -> Value {
        let kind = |times: [u64; 3]| TRANSFERS.iter().map(|name| (*name, times)).collect::<BTreeMap<_, _>>();
        let times =
            json!({"none": kind([200, 210, 190]), "swiotlb": kind([250, 250, 230]), "software": kind([300, 250, 400])});
        json!({"bytes": 64 << 20, "times": times})
    }

    #[test]
    fn each_transfer_has_its_ratios_and_its_share() {
        let mut figures = Figures::default();
        add(&mut figures, &serde_json::from_value(record()).unwrap()).unwrap();
        let json = figures.to_json();
        for transfer in TRANSFERS {
            let expected = json!({"none_ratio": 1.5, "swiotlb_share": 40.0 / 250.0, "rest_ratio": 1.2});
            assert_eq!(json["io"][transfer], expected, "{transfer}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let add = |record| add(&mut Figures::default(), &serde_json::from_value(record).unwrap());
        let mut less = record();
        less["times"]["none"].as_object_mut().unwrap().remove("disk_read");
        assert!(add(less).unwrap_err().to_string().contains("disk_read with none"));
        let mut less = record();
        less["times"]["software"]["disk_write"].as_array_mut().unwrap().pop();
        assert!(add(less).unwrap_err().to_string().contains("disk_write equally"));
    }
}
