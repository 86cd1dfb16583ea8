//! How much of the host's memory a machine takes: what the full demonstration measured, beside what it should be.
//!
//! | key | what |
//! |---|---|
//! | `footprint.vmm_bytes` | proportional set size of the VMM's mappings that are not guest RAM, with all devices in use |
//! | `footprint.host_memory_ratio` | the most memory of the host behind guest RAM at a time, without what the guest shared, to guest RAM |

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::figures::{Figures, Sample};

/// Takes the figures from the file that `cargo lab demo --full --json` wrote.
///
/// # Errors
/// A file that can't be read, or lacks a figure.
pub fn run(figures: &mut Figures, demo: &Path) -> Result<()> {
    let text = std::fs::read_to_string(demo).with_context(|| format!("cannot read {}", demo.display()))?;
    let demo: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", demo.display()))?;
    add(figures, &demo)
}

fn add(figures: &mut Figures, demo: &Value) -> Result<()> {
    let value = |key: &str| demo[key].as_f64().with_context(|| format!("the demonstration did not tell {key}"));
    let (ram, peak) = (value("ram_bytes")?, value("host_peak_bytes")?);
    let own = (peak - value("shared_peak_bytes")?).max(0.0);
    figures.add("footprint.vmm_bytes", Sample::of([value("vmm_rss_bytes")?]));
    figures.add("footprint.host_memory_ratio", Sample::of([own / ram]));
    figures.note("footprint.host_peak_bytes", Sample::of([peak]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_shared_does_not_count() {
        let demo = json!({
            "ram_bytes": 1000, "host_peak_bytes": 1090, "shared_peak_bytes": 70, "vmm_rss_bytes": 4096,
        });
        let mut figures = Figures::default();
        add(&mut figures, &demo).unwrap();
        let expected = json!({"footprint": {"vmm_bytes": 4096.0, "host_memory_ratio": 1.02}});
        assert_eq!(figures.to_json(), expected);
    }

    #[test]
    fn a_figure_that_is_missing_is_named() {
        let error = add(&mut Figures::default(), &json!({"ram_bytes": 1})).unwrap_err().to_string();
        assert!(error.contains("host_peak_bytes"), "{error}");
    }
}
