//! Figures as a table for readers.

use crate::figures::{Figure, Figures, Sample};
use crate::targets::target;

const HEADINGS: [&str; 5] = ["figure", "median", "middle half", "at most", ""];

/// The table, and where there are targets, a last line that says which were missed.
pub fn table(figures: &Figures) -> String {
    let rows: Vec<[String; 5]> = figures.iter().map(row).collect();
    let headings = HEADINGS.map(String::from);
    let width =
        |column: usize| rows.iter().chain([&headings]).map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(&rows) {
        let [key, median, spread, most, verdict] = row;
        let line = format!(
            "{key:0$}  {median:>1$}  {spread:>2$}  {most:>3$}  {verdict}",
            widths[0], widths[1], widths[2], widths[3]
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    match summary(figures) {
        Some(summary) => text + "\n" + &summary + "\n",
        None => text,
    }
}

fn row(figure: &Figure) -> [String; 5] {
    let Sample { median, low, high, count } = figure.sample;
    let print = |value: f64| number(&figure.key, value);
    let spread = if count > 1 { format!("{} to {}", print(low), print(high)) } else { String::new() };
    let most = target(&figure.key);
    let verdict = match most {
        None => "",
        Some(most) if median <= most => "pass",
        Some(_) => "MISS",
    };
    [figure.key.clone(), print(median), spread, most.map(print).unwrap_or_default(), verdict.into()]
}

fn summary(figures: &Figures) -> Option<String> {
    let judged = || figures.iter().filter_map(|figure| Some((figure, target(&figure.key)?)));
    // NaN is no pass.
    let passed = |(figure, most): &(&Figure, f64)| figure.sample.median <= *most;
    let missed: Vec<&str> = judged().filter(|judged| !passed(judged)).map(|(figure, _)| &*figure.key).collect();
    let count = judged().count();
    Some(match missed.len() {
        0 if count == 0 => return None,
        0 => format!("all {count} figures with a target meet it"),
        number => format!("{} of {count} figures with a target meet it; missed: {}", count - number, missed.join(", ")),
    })
}

/// A figure in the unit that its key ends with.
fn number(key: &str, value: f64) -> String {
    let scaled = |units: &[(&str, f64)]| {
        let (unit, size) =
            units.iter().rev().find(|(_, size)| value >= *size).or(units.first()).copied().unwrap_or(("", 1.0));
        format!("{:.*} {unit}", if value / size < 100.0 { 1 } else { 0 }, value / size)
    };
    if key.ends_with("_ns") {
        scaled(&[("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)])
    } else if key.ends_with("bytes") {
        scaled(&[("B", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)])
    } else if value.fract() == 0.0 && value >= 100.0 {
        format!("{value}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_was_missed() {
        let mut figures = Figures::default();
        figures.add("access.read.8.held_ratio", Sample::of([0.70, 0.71, 0.72]));
        figures.add("access.write.8.held_ratio", Sample::of([0.5, 0.6, 0.7]));
        figures.note("map.0.set_all_ns", Sample::of([14_250_000.0]));
        figures.add("map.1000000.bytes", Sample::of([33_554_432.0]));
        figures.add("access.read.4096.held_ratio", Sample::of([]));
        let expected = "\
figure                         median     middle half   at most
access.read.8.held_ratio        0.710  0.700 to 0.710     0.600  MISS
access.write.8.held_ratio       0.600  0.500 to 0.600     0.600  pass
map.0.set_all_ns              14.2 ms
map.1000000.bytes            32.0 MiB                  64.0 MiB  pass
access.read.4096.held_ratio       NaN                     1.050  MISS

2 of 4 figures with a target meet it; missed: access.read.8.held_ratio, access.read.4096.held_ratio
";
        assert_eq!(table(&figures), expected);
    }

    #[test]
    fn without_targets_there_is_nothing_to_sum_up() {
        let mut figures = Figures::default();
        figures.note("map.0.set_all_ns", Sample::of([1.0]));
        assert_eq!(table(&figures).lines().count(), 2);
    }

    #[test]
    fn figures_come_in_a_unit_that_fits() {
        assert_eq!(number("x_ns", 7.25), "7.2 ns");
        assert_eq!(number("x_ns", 412_000.0), "412 µs");
        assert_eq!(number("x_ns", 2.5e9), "2.5 s");
        assert_eq!(number("x_ns", 0.5), "0.5 ns");
        assert_eq!(number("bytes", 33_558_528.0), "32.0 MiB");
        assert_eq!(number("x_ratio", 0.9786), "0.979");
        assert_eq!(number("conversions", 16822.0), "16822");
    }
}
