//! What runs inside the nested host: `lab inside ...`. `lab` starts itself there; nobody else needs these commands.

pub mod console;
pub mod demo;
pub mod events;
pub mod full;
pub mod guest;
pub mod io;
pub mod markers;
pub mod search;
pub mod smaps;
pub mod watch;

use std::process::ExitCode;

use anyhow::Result;

/// Options of `lab inside`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The part of `lab demo` that starts the virtual machines
    Demo(demo::Args),
    /// The part of `lab demo --full` that starts the virtual machines
    Full(full::Args),
    /// The part of `lab bench io` that starts the virtual machines
    Io(io::Args),
    /// Search a process for a guest's canary
    Search(search::Args),
}

/// Runs one of the commands.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Command::Demo(args) => demo::run(args),
        Command::Full(args) => full::run(args),
        Command::Io(args) => io::run(args),
        Command::Search(args) => search::run(args).map(|()| ExitCode::SUCCESS),
    }
}
