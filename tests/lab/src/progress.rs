//! Progress of a long step, on standard error: on a terminal one line that is rewritten, elsewhere a line now and then.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line on a terminal changes.
const REDRAW: Duration = Duration::from_millis(250);
/// How often a line is written where there is no terminal.
const REPORT: Duration = Duration::from_secs(30);

/// One step with a known amount of work, or with none known.
#[derive(Debug)]
pub struct Progress {
    label: String,
    total: u64,
    started: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins a step of `total` units (0 when unknown) and says so.
    pub fn start(label: impl Into<String>, total: u64) -> Self {
        let (label, started, terminal) = (label.into(), Instant::now(), std::io::stderr().is_terminal());
        if !terminal {
            eprintln!("lab: {label} ...");
        }
        Self { label, total, started, shown: (!terminal).then_some(started), terminal }
    }

    /// Reports that `done` units are finished.
    pub fn update(&mut self, done: u64) {
        let now = Instant::now();
        let interval = if self.terminal { REDRAW } else { REPORT };
        if self.shown.is_some_and(|shown| now.duration_since(shown) < interval) {
            return;
        }
        self.shown = Some(now);
        let line = describe(&self.label, done, self.total, self.started.elapsed());
        if self.terminal {
            eprint!("\r\x1b[Klab: {line}");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("lab: {line}");
        }
    }

    /// Ends the step with what came of it.
    pub fn finish(mut self, result: &str) {
        let elapsed = clock(self.started.elapsed());
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}lab: {}: {result} ({elapsed})", self.label);
        self.shown = None;
    }
}

impl Drop for Progress {
    /// A step that failed leaves its line; what follows starts on a new one.
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            eprintln!();
        }
    }
}

fn describe(label: &str, done: u64, total: u64, elapsed: Duration) -> String {
    if total == 0 {
        return format!("{label}, {}", clock(elapsed));
    }
    // A total from another version of the source may be a little off: never more than 99 %.
    let share = (done as f64 / total as f64).min(0.99);
    let percent = (share * 100.0).floor();
    if share < 0.02 || elapsed < Duration::from_secs(2) {
        return format!("{label}, {percent} %");
    }
    let left = elapsed.mul_f64((1.0 - share) / share);
    format!("{label}, {percent} %, about {} left", clock(left))
}

/// A duration as people say it: `45 s`, `3 min 20 s`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_from_what_is_done() {
        let line = describe("building", 25, 100, Duration::from_secs(50));
        assert_eq!(line, "building, 25 %, about 2 min 30 s left");
    }

    #[test]
    fn an_early_step_has_no_estimate_and_a_late_one_never_says_100() {
        assert_eq!(describe("building", 0, 100, Duration::from_secs(60)), "building, 0 %");
        assert_eq!(describe("building", 50, 100, Duration::from_secs(1)), "building, 50 %");
        assert!(describe("building", 130, 100, Duration::from_secs(60)).starts_with("building, 99 %"));
        assert_eq!(describe("unpacking", 5, 0, Duration::from_secs(61)), "unpacking, 1 min 1 s");
    }

    #[test]
    fn durations_are_readable() {
        assert_eq!(clock(Duration::from_millis(400)), "0 s");
        assert_eq!(clock(Duration::from_secs(59)), "59 s");
        assert_eq!(clock(Duration::from_secs(60)), "1 min");
        assert_eq!(clock(Duration::from_secs(200)), "3 min 20 s");
    }
}
