//! The options that every command of the lab takes.

use std::time::Duration;

use clap::{Args, value_parser};

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every command")]
pub struct Options {
    /// Install missing packages through sudo without asking
    #[arg(long, global = true)]
    pub yes: bool,

    /// Run on this machine's own KVM instead of a nested host (an AMD host with KVM_X86_SW_PROTECTED_VM)
    #[arg(long, global = true)]
    pub native: bool,

    /// End what runs inside after so many seconds, with exit status 124
    #[arg(long, global = true, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=MOST_SECONDS))]
    time_limit: Option<u64>,

    /// Show the nested kernel's console and what the tools say
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// A year: beyond it a limit is no limit, and adding it to a clock could overflow.
const MOST_SECONDS: u64 = 365 * 24 * 3600;

impl Options {
    /// The time limit that was asked for, else `default`.
    pub fn time_limit(&self, default: Duration) -> Duration {
        self.time_limit.map_or(default, Duration::from_secs)
    }
}
