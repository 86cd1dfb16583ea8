//! Throughput of a guest's disk and network, `software` beside `none`, from the times that the lab's guests took.
//!
//! | key | what |
//! |---|---|
//! | `io.<transfer>.none_ratio` | time with `isolation=software`, to that with `isolation=none` |
//! | `io.<transfer>.swiotlb_share` | the part of the time with `software` that copying the same bytes once in that guest takes |
//!
//! A transfer is `disk_write`, `disk_read` (both direct, so past the guest's cache), `network_in` or `network_out` (one TCP
//! connection). With `software`, devices reach only memory that is open to them, so Linux copies each byte once between it
//! and its private memory (its swiotlb does): the same guest times a copy of as many bytes in memory.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::figures::{Figures, Sample};

const TRANSFERS: [&str; 4] = ["disk_write", "disk_read", "network_in", "network_out"];

/// Takes the times from the lab's file.
///
/// # Errors
/// A file that can't be read, or lacks times.
pub fn run(figures: &mut Figures, times: &Path) -> Result<()> {
    let text = std::fs::read_to_string(times).with_context(|| format!("cannot read {}", times.display()))?;
    let times: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", times.display()))?;
    add(figures, &times)
}

type Times = BTreeMap<String, Vec<f64>>;

fn add(figures: &mut Figures, times: &Value) -> Result<()> {
    let of = |isolation: &str| -> Result<Times> {
        serde_json::from_value(times[isolation].clone()).with_context(|| format!("there are no times with {isolation}"))
    };
    let (none, software) = (of("none")?, of("software")?);
    let bytes = times["bytes"].as_f64().context("the times do not say of how many bytes they are")?;
    let get =
        |times: &Times, kind: &str| times.get(kind).cloned().with_context(|| format!("there are no times of {kind}"));
    let copy = Sample::of(get(&software, "copy")?).median;
    for transfer in TRANSFERS {
        let (none, software) = (get(&none, transfer)?, get(&software, transfer)?);
        figures.add(format!("io.{transfer}.none_ratio"), Sample::ratio(&software, &none));
        let share = software.iter().map(|time| copy / time);
        figures.add(format!("io.{transfer}.swiotlb_share"), Sample::of(share));
        for (isolation, times) in [("none", none), ("software", software)] {
            let rates = times.iter().map(|nanoseconds| bytes / (nanoseconds / 1e9));
            figures.note(format!("io.{transfer}.{isolation}_per_second_bytes"), Sample::of(rates));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn times() -> Value {
        let kinds = |copy: u64, transfer: u64| {
            let mut kinds = json!({"copy": [copy, copy]});
            for name in TRANSFERS {
                kinds[name] = json!([transfer, transfer]);
            }
            kinds
        };
        json!({"bytes": 64 << 20, "none": kinds(9, 200), "software": kinds(30, 300)})
    }

    #[test]
    fn each_transfer_has_its_ratio_and_its_share() {
        let mut figures = Figures::default();
        add(&mut figures, &times()).unwrap();
        let json = figures.to_json();
        for transfer in TRANSFERS {
            assert_eq!(json["io"][transfer], json!({"none_ratio": 1.5, "swiotlb_share": 0.1}), "{transfer}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut less = times();
        less["none"].as_object_mut().unwrap().remove("disk_read");
        let error = add(&mut Figures::default(), &less).unwrap_err().to_string();
        assert!(error.contains("disk_read"), "{error}");
    }
}
