//! What is said on standard error: for people by default, one JSON object a line for programs.

use std::env::VarError;
use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What says what to say.
const VARIABLE: &str = "UMBRA_LOG";

/// What a guest could fill the log with: the queues' library reports each descriptor that makes no sense. Devices count and
/// tell that themselves.
const QUIET: &str = "virtio_queue=off";

/// Starts logging.
///
/// # Errors
/// What the environment asks for makes no sense.
pub fn start(verbose: u8, format: Format) -> anyhow::Result<()> {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = match std::env::var(VARIABLE) {
        Ok(asked) if !asked.trim().is_empty() => filter(&asked),
        Ok(_) | Err(VarError::NotPresent) => filter(level),
        Err(error) => Err(error.into()),
    };
    let remedy = || format!("{VARIABLE} makes no sense: write levels, or modules with levels, such as warn,vmm=debug");
    let log = tracing_subscriber::fmt().with_env_filter(filter.with_context(remedy)?).with_writer(std::io::stderr);
    match format {
        Format::Human => log.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => log.json().init(),
    }
    Ok(())
}

/// What passes that is asked for. What a guest could fill the log with does only where its module is named: of two that are
/// as narrow, the later holds.
fn filter(asked: &str) -> anyhow::Result<EnvFilter> {
    for part in asked.split(',') {
        anyhow::ensure!(!part.trim().is_empty(), "there is nothing between two commas, or at an end");
    }
    EnvFilter::builder().parse(format!("{QUIET},{asked}")).with_context(|| format!("{asked:?} can't be read"))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_guest_can_not_fill_the_log_unless_that_is_asked_for() {
        for (asked, guest, ours) in [
            ("debug", false, true),
            ("warn,vmm=debug", false, false),
            ("trace,umbra=trace", false, true),
            ("warn,virtio_queue=debug", true, false),
            ("virtio_queue=debug", true, false),
            ("virtio_queue,debug", true, true),
            ("off", false, false),
        ] {
            let log = tracing_subscriber::fmt().with_env_filter(filter(asked).unwrap()).finish();
            tracing::subscriber::with_default(log, || {
                assert_eq!(tracing::enabled!(target: "virtio_queue", Level::DEBUG), guest, "{asked}");
                assert_eq!(tracing::enabled!(target: "umbra", Level::DEBUG), ours, "{asked}");
            });
        }
        for bad in ["vmm=nonsense,,=", "vmm=nonsense", "=", "warn,,vmm=debug", "warn,", "vmm=warn=debug"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
