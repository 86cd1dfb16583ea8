//! Figures: medians, and where to put them.

use std::fmt;

use serde_json::{Map, Value};

/// Measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The median.
    pub median: f64,
    /// A quarter of the measurements are below this.
    pub low: f64,
    /// A quarter of the measurements are above this.
    pub high: f64,
}

impl Sample {
    /// Of these measurements, of which there has to be one at least.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |part: usize| values.get((values.len().saturating_sub(1)) * part / 4).copied().unwrap_or(f64::NAN);
        Self { median: at(2), low: at(1), high: at(3) }
    }

    /// Of the quotients of measurements that were made in turns.
    pub fn ratio(of: &[f64], to: &[f64]) -> Self {
        let quotients = Self::of(of.iter().zip(to).map(|(of, to)| of / to));
        let (of, to) = (Self::of(of.iter().copied()), Self::of(to.iter().copied()));
        Self { median: of.median / to.median, ..quotients }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median < 100.0 { 3 } else { 0 };
        write!(f, "{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.low, self.high)
    }
}

/// Figures by key.
#[derive(Debug, Default)]
pub struct Figures {
    entries: Vec<(String, Sample)>,
}

impl Figures {
    /// Adds a figure; its key is parted by dots.
    pub fn add(&mut self, key: impl Into<String>, sample: Sample) {
        self.entries.push((key.into(), sample));
    }

    /// The median of a figure.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.entries.iter().find(|(other, _)| other == key).map(|(_, sample)| sample.median)
    }

    /// The medians as nested objects, split at the dots of the keys.
    pub fn to_json(&self) -> Value {
        let mut root = Map::new();
        for (key, sample) in &self.entries {
            let mut object = &mut root;
            let mut parts = key.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    object.insert(part.into(), sample.median.into());
                    break;
                }
                let inner = object.entry(part).or_insert_with(|| Value::Object(Map::new()));
                match inner {
                    Value::Object(inner) => object = inner,
                    _ => break,
                }
            }
        }
        Value::Object(root)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.entries.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        for (key, sample) in &self.entries {
            writeln!(f, "{key:width$}  {sample}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_medians_and_quartiles() {
        let sample = Sample::of((0..=100).rev().map(f64::from));
        assert_eq!((sample.low, sample.median, sample.high), (25.0, 50.0, 75.0));
        let ratio = Sample::ratio(&[2.0, 30.0, 4.0], &[1.0, 2.0, 4.0]);
        assert_eq!(ratio.median, 2.0, "a quotient of medians");
        assert!(Sample::of([]).median.is_nan());
    }

    #[test]
    fn keys_become_nested_objects() {
        let mut figures = Figures::default();
        figures.add("map.0.lookup_ns", Sample::of([3.0]));
        figures.add("map.1000.lookup_ns", Sample::of([4.0]));
        figures.add("access.read.8.held_ratio", Sample::of([0.5]));
        let expected = serde_json::json!({
            "map": { "0": { "lookup_ns": 3.0 }, "1000": { "lookup_ns": 4.0 } },
            "access": { "read": { "8": { "held_ratio": 0.5 } } },
        });
        assert_eq!(figures.to_json(), expected);
    }
}
