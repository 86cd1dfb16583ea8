//! `umbra`: run virtual machines whose memory nobody can map.
//!
//! Exit status: 0 when the guest powered off, the operator ended it, or a check found what it looked for; 1 for an
//! error, with its whole chain of causes on standard error; 2 for a command line, or UMBRA_LOG, that makes no sense. Help says
//! what that is for each command.

mod allocator;
mod check;
mod ctl;
mod generate;
mod logging;
mod new_file;
mod options;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use logging::Format;

/// Where help lists options that every command has.
const GLOBAL: &str = "Global options";

/// Run virtual machines whose memory no process on the host can map.
#[derive(Parser)]
#[command(
    name = "umbra",
    version,
    max_term_width = 100,
    after_help = "\
Exit status:
  0  it is done: umbra run says when, and umbra check what it found
  1  an error, told on standard error
  2  a command line or UMBRA_LOG that makes no sense

Environment:
  UMBRA_LOG     what to say on standard error, such as warn,vmm=debug; instead of -v
  UMBRA_SOCKET  the socket for umbra ctl; instead of --socket"
)]
struct Cli {
    /// Say more on standard error: -v what happens, -vv why. UMBRA_LOG has the same for single modules.
    #[arg(short, action = clap::ArgAction::Count, global = true, help_heading = GLOBAL)]
    verbose: u8,
    /// How what is said on standard error is written.
    #[arg(long, global = true, help_heading = GLOBAL, value_enum, default_value = "human", value_name = "human|json")]
    log_format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a Linux kernel and run it until it powers off.
    Run(Box<run::Args>),
    /// Tell what this host can do, and what it lacks for each isolation.
    Check(check::Args),
    /// Steer a machine through the socket that `umbra run --api-socket` serves.
    Ctl(Box<ctl::Args>),
    /// Write completions for a shell to standard output.
    Completions(generate::Completions),
    /// Write the manual pages to a folder.
    Manual(generate::Manual),
}

fn main() -> ExitCode {
    allocator::give_memory_back();
    let cli = Cli::parse();
    if let Err(error) = logging::start(cli.verbose, cli.log_format) {
        eprintln!("umbra: {error:#}");
        return ExitCode::from(2);
    }
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::check(args),
        Command::Ctl(args) => ctl::ctl(args),
        Command::Completions(args) => generate::completions(args),
        Command::Manual(args) => generate::manual(args),
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
