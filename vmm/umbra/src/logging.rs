//! What is said on standard error: for people by default, one JSON object a line for programs.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What a guest could fill the log with: the queues' library reports each descriptor that makes no sense. Devices count and
/// tell that themselves.
const QUIET: &str = "virtio_queue=off";

/// Starts logging.
pub fn start(verbose: u8, format: Format) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("UMBRA_LOG").unwrap_or_else(|_| EnvFilter::new(format!("{level},{QUIET}")));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Human => log.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => log.json().init(),
    }
}
