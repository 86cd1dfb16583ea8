//! Answers as people read them: names on the left, values on the right, sizes with units.

use std::fmt::Write;

use serde_json::{Map, Value};
use umbra_api::picture::size;
use umbra_api::types::MemoryRun;

/// A value without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            items.iter().map(plain).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

fn rows<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let rows: Vec<(&str, String)> = rows.into_iter().collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<width$}  {value}");
        text
    })
}

fn object(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(name, value)| (name.as_str(), value))
}

/// Fields as they are.
pub fn fields(value: &Value) -> String {
    rows(object(value).map(|(name, value)| (name, plain(value))))
}

/// Figures: bytes with units, addresses in hexadecimal.
pub fn figures(value: &Value) -> String {
    rows(object(value).map(|(name, value)| {
        let text = match value.as_u64() {
            Some(bytes) if name.ends_with("_bytes") || name == "size" => size(bytes),
            Some(address) if name == "gpa" => format!("{address:#x}"),
            _ if name == "conversion_latency" => latency(value),
            _ => plain(value),
        };
        (name, text)
    }))
}

/// How long things took: the median's bucket, and that of the slowest.
fn latency(value: &Value) -> String {
    let counts: Vec<u64> = value["counts"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let total: u64 = counts.iter().sum();
    let below = |rank: u64| {
        let mut seen = 0;
        let power = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        match power {
            Some(power) if power + 1 < counts.len() => format!("below {} µs", 1u64 << power),
            _ => "seconds".into(),
        }
    };
    if total == 0 { "-".into() } else { format!("half {}, all {}", below(total.div_ceil(2)), below(total)) }
}

/// The machine.
pub fn info(value: &Value) -> String {
    let config = &value["config"];
    let mut lines = vec![("state", plain(&value["state"]))];
    lines.push(("kernel", plain(&config["payload"]["kernel"])));
    lines.push(("processors", config["cpus"]["boot_vcpus"].as_u64().unwrap_or(1).to_string()));
    lines.push(("memory", value["memory_actual_size"].as_u64().map(size).unwrap_or_default()));
    // What it became, or what was asked for where that is still open.
    let asked = config["platform"]["isolation"].as_str().filter(|asked| *asked != "auto");
    let isolation = value["isolation"].as_str().or(asked).unwrap_or("auto: chosen when it boots");
    lines.push(("isolation", isolation.to_owned()));
    let devices: Vec<String> =
        object(&value["device_tree"]).map(|(id, device)| format!("{id} ({})", plain(&device["pci_bdf"]))).collect();
    lines.push(("devices", if devices.is_empty() { "-".into() } else { devices.join(", ") }));
    rows(lines)
}

/// What devices count.
pub fn counters(value: &Value) -> String {
    let lines: Vec<(String, String)> = object(value)
        .flat_map(|(device, counters)| object(counters).map(move |(name, n)| (format!("{device} {name}"), plain(n))))
        .collect();
    rows(lines.iter().map(|(name, n)| (name.as_str(), n.clone())))
}

/// An event, in a line.
pub fn event(event: &Value) -> String {
    let properties: Vec<String> =
        object(&event["properties"]).map(|(name, value)| format!("{name}={}", plain(value))).collect();
    let line = format!("{}.{} {}", plain(&event["source"]), plain(&event["event"]), properties.join(" "));
    format!("{}\n", line.trim_end())
}

/// The map.
pub fn runs(runs: &[MemoryRun]) -> String {
    let mut text = format!("{:<14}  {:<14}  {:>10}  state\n", "from", "to", "size");
    for run in runs {
        let (start, end) = (run.gpa, run.gpa.saturating_add(run.size).saturating_sub(1));
        let state = format!("{:?}", run.state).to_lowercase();
        let window = if run.window { " (window)" } else { "" };
        let tag = run.tag.map(|tag| format!(" (tag {tag})")).unwrap_or_default();
        let (start, end) = (format!("{start:#x}"), format!("{end:#x}"));
        let _ = writeln!(text, "{start:<14}  {end:<14}  {:>10}  {state}{window}{tag}", size(run.size));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_have_units_and_stand_under_each_other() {
        let text = figures(&json!({ "gpa": 4096, "changed_bytes": 2097152, "contents": "kept" }));
        assert_eq!(text, "changed_bytes  2 MiB\ncontents       kept\ngpa            0x1000\n");
    }

    #[test]
    fn isolations_are_told_as_they_are_and_before_that_as_asked_for() {
        let of = |platform: Value, isolation: Value| {
            let text = info(&json!({ "config": { "platform": platform }, "isolation": isolation }));
            let line = text.lines().find_map(|line| line.strip_prefix("isolation")).unwrap();
            line.trim().to_owned()
        };
        assert_eq!(of(json!({ "isolation": "auto" }), json!("software")), "software");
        assert_eq!(of(Value::Null, json!("none")), "none");
        assert_eq!(of(json!({ "isolation": "software" }), Value::Null), "software");
        assert_eq!(of(Value::Null, Value::Null), "auto: chosen when it boots");
    }

    #[test]
    fn latencies_are_told_by_their_buckets() {
        let of = |counts: &[u64]| latency(&json!({ "counts": counts, "sum_ns": 1 }));
        assert_eq!(of(&[0, 0, 0]), "-");
        assert_eq!(of(&[0, 3, 0, 1, 0]), "half below 2 µs, all below 8 µs");
        assert_eq!(of(&[1, 0, 2]), "half seconds, all seconds");
    }

    #[test]
    fn events_are_lines() {
        let text = event(&json!({ "source": "vm", "event": "booted", "properties": null }));
        assert_eq!(text, "vm.booted\n");
        let text = event(&json!({ "source": "memory", "event": "conversions", "properties": { "host": 3 } }));
        assert_eq!(text, "memory.conversions host=3\n");
    }
}
