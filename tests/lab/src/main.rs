//! `cargo lab`: a nested host with real KVM memory attributes, on any x86-64 machine, and what is run in it.
//!
//! docs/lab.md says how it is used. In this program: `machine` is what runs a job, `kernel`, `packages` and `cache` make
//! it ready, `commands` are what the user types.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("the lab runs on x86-64 Linux only");

mod cache;
mod commands;
mod cpio;
mod debian;
mod demo;
mod inside;
mod interrupt;
mod kernel;
mod machine;
mod options;
mod packages;
mod process;
mod progress;
mod quote;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{bench, build, fuzz, sh, test};
use crate::options::Options;

/// A nested host with real KVM memory attributes, on any x86-64 machine
///
/// QEMU emulates an AMD machine, which runs a Linux 6.12 whose KVM offers software-protected VMs. It sees this machine's
/// files read-only and one output folder read-write, so what was built here runs there. The first use builds the nested
/// host's kernel, which takes some minutes; later ones start in two to three seconds.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

const EXAMPLES: &str = "\
Examples:
  cargo lab demo                      boot Debian in unmappable memory and look for its secret
  cargo lab demo --full               the same with a whole system, disks and network
  cargo lab test                      run all tests, those for real KVM inside
  cargo lab fuzz conversion_request   look for inputs that break it, for a minute
  cargo lab bench                     what the memory core costs, beside what others do without it
  cargo lab sh                        a shell inside
  cargo lab sh -- ls -l /dev/kvm      one command inside
  cargo lab build                     only make everything ready";

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot an unmodified Debian kernel in unmappable memory, and search for its secret from outside
    Demo(demo::Args),
    /// Run all tests: those of the workspace here, those for real KVM inside
    Test(test::Args),
    /// Feed one of the fuzz targets for some time, on this machine
    Fuzz(fuzz::Args),
    /// Measure the memory core: accesses and the map here, conversions inside
    Bench(bench::Args),
    /// Run a shell or a command inside
    Sh(sh::Args),
    /// Make everything ready that the other commands need
    Build(build::Args),
    #[command(hide = true)]
    Inside(inside::Args),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let result = interrupt::handle_signals().and_then(|()| match &arguments.command {
        Command::Demo(args) => demo::run(args, options),
        Command::Test(args) => test::run(args, options),
        Command::Fuzz(args) => fuzz::run(args, options),
        Command::Bench(args) => bench::run(args, options),
        Command::Sh(args) => sh::run(args, options),
        Command::Build(args) => build::run(args, options),
        Command::Inside(args) => inside::run(args),
    });
    result.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_of_every_command_stand_on_either_side_of_it() {
        for line in [["lab", "--verbose", "build"], ["lab", "build", "--verbose"]] {
            assert!(Arguments::try_parse_from(line).unwrap().options.verbose);
        }
    }

    #[test]
    fn a_time_limit_is_a_number_of_seconds_above_zero() {
        for bad in ["0", "-1", "1.5", "99999999999", "x"] {
            assert!(Arguments::try_parse_from(["lab", "build", &format!("--time-limit={bad}")]).is_err(), "{bad}");
        }
        assert!(Arguments::try_parse_from(["lab", "build", "--time-limit=1"]).is_ok());
    }
}
