//! What the figures have to keep to.

use crate::figures::Figures;

/// The most that a figure may be, or that its quotient to another one may.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Key of the figure.
    pub key: &'static str,
    /// Key of what it is divided by, if anything.
    pub to: Option<&'static str>,
    /// The most.
    pub most: f64,
}

const fn limit(key: &'static str, most: f64) -> Limit {
    Limit { key, to: None, most }
}

/// All limits.
pub const LIMITS: [Limit; 13] = [
    limit("access.read.8.per_access_ratio", 1.0),
    limit("access.write.8.per_access_ratio", 1.0),
    limit("access.read.4096.per_access_ratio", 1.0),
    limit("access.write.4096.per_access_ratio", 1.0),
    limit("access.read.8.held_ratio", 0.6),
    limit("access.write.8.held_ratio", 0.6),
    limit("access.read.4096.held_ratio", 1.05),
    limit("access.write.4096.held_ratio", 1.05),
    limit("access.read.8.growth_median", 1.1),
    limit("access.read.8.growth_mean", 1.1),
    Limit { key: "map.1000000.lookup_ns", to: Some("map.0.lookup_ns"), most: 2.0 },
    Limit { key: "map.1000000.set_page_ns", to: Some("map.0.set_page_ns"), most: 2.0 },
    limit("map.1000000.bytes", (64u64 << 20) as f64),
];

/// The limits that these figures don't keep to, each with what it is instead. Figures that are not there keep to
/// theirs.
pub fn exceeded(figures: &Figures) -> Vec<(Limit, f64)> {
    let value = |limit: &Limit| {
        let to = limit.to.map_or(Some(1.0), |to| figures.get(to))?;
        Some(figures.get(limit.key)? / to)
    };
    let measured = LIMITS.iter().filter_map(|limit| Some((*limit, value(limit)?)));
    measured.filter(|(limit, value)| value.is_nan() || *value > limit.most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Sample;

    #[test]
    fn a_figure_above_its_limit_is_found() {
        let mut figures = Figures::default();
        figures.add("access.read.8.held_ratio", Sample::of([0.7]));
        figures.add("access.write.8.held_ratio", Sample::of([0.6]));
        figures.add("map.0.lookup_ns", Sample::of([10.0]));
        figures.add("map.1000000.lookup_ns", Sample::of([21.0]));
        figures.add("access.read.4096.held_ratio", Sample::of([]));
        let found: Vec<_> = exceeded(&figures).into_iter().map(|(limit, _)| limit.key).collect();
        assert_eq!(found, ["access.read.8.held_ratio", "access.read.4096.held_ratio", "map.1000000.lookup_ns"]);
    }
}
