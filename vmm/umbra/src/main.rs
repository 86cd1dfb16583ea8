//! `umbra`: run virtual machines whose memory nobody can map.
//!
//! Exit status: 0 when the guest powered off, the operator ended it, or a check found what it looked for; 1 for an
//! error, with its whole chain of causes on standard error; 2 for a command line that makes no sense.

mod check;
mod new_file;
mod options;
mod run;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Run virtual machines whose memory no process on the host can map.
#[derive(Parser)]
#[command(name = "umbra", version, max_term_width = 100)]
struct Cli {
    /// Say more on standard error: -v what happens, -vv why. UMBRA_LOG has the same for single modules.
    #[arg(short, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a Linux kernel and run it until it powers off.
    Run(run::Args),
    /// Tell what this host can do, and what it lacks for each isolation.
    Check(check::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("UMBRA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::check(args),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("umbra: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
