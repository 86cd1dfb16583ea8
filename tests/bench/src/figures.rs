//! Figures: medians with their spread, and where to put them.

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
    /// How many there are.
    pub count: usize,
}

impl Sample {
    /// Of these measurements. Without any, all is NaN.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let count = values.len();
        let at = |part: usize| values.get(count.saturating_sub(1) * part / 4).copied().unwrap_or(f64::NAN);
        Self { median: at(2), low: at(1), high: at(3), count }
    }

    /// The quotient of the medians of measurements that were made in turns. The spread is that of their quotients.
    pub fn ratio(of: &[f64], to: &[f64]) -> Self {
        let quotients = Self::of(of.iter().zip(to).map(|(of, to)| of / to));
        let (of, to) = (Self::of(of.iter().copied()), Self::of(to.iter().copied()));
        Self { median: of.median / to.median, ..quotients }
    }
}

/// A figure and its key, which is parted by dots.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The key.
    pub key: String,
    /// The measurements.
    pub sample: Sample,
    /// Whether it is for programs as well as for readers.
    pub exported: bool,
}

/// Figures in the order in which they were added.
#[derive(Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds a figure.
    pub fn add(&mut self, key: impl Into<String>, sample: Sample) {
        self.0.push(Figure { key: key.into(), sample, exported: true });
    }

    /// Adds a figure that is for readers only.
    pub fn note(&mut self, key: impl Into<String>, sample: Sample) {
        self.0.push(Figure { key: key.into(), sample, exported: false });
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Figure> {
        self.0.iter()
    }

    /// The medians of those that are for programs, as nested objects, split at the dots of the keys.
    pub fn to_json(&self) -> Value {
        let mut root = Map::new();
        for figure in self.0.iter().filter(|figure| figure.exported) {
            let mut object = &mut root;
            let mut parts = figure.key.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    object.insert(part.into(), figure.sample.median.into());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_medians_and_quartiles() {
        let sample = Sample::of((0..=100).rev().map(f64::from));
        assert_eq!((sample.low, sample.median, sample.high, sample.count), (25.0, 50.0, 75.0, 101));
        let ratio = Sample::ratio(&[2.0, 30.0, 4.0], &[1.0, 2.0, 4.0]);
        assert_eq!((ratio.median, ratio.low), (2.0, 1.0), "a quotient of medians, and the spread of quotients");
        assert!(Sample::of([]).median.is_nan());
    }

    #[test]
    fn keys_become_nested_objects() {
        let mut figures = Figures::default();
        figures.add("map.0.lookup_ns", Sample::of([3.0]));
        figures.add("map.1000.lookup_ns", Sample::of([4.0]));
        figures.note("map.1000.for_readers", Sample::of([5.0]));
        figures.add("access.read.8.held_ratio", Sample::of([0.5]));
        let expected = serde_json::json!({
            "map": { "0": { "lookup_ns": 3.0 }, "1000": { "lookup_ns": 4.0 } },
            "access": { "read": { "8": { "held_ratio": 0.5 } } },
        });
        assert_eq!(figures.to_json(), expected);
    }
}
