//! `cargo lab build`: makes everything ready, so that the other commands start at once.

use std::process::ExitCode;

use anyhow::Result;

use crate::cache::Cache;
use crate::machine::{Machine, NestedHost};
use crate::options::Options;

/// Options of `lab build`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cargo lab build              install what is missing, build the nested host's kernel
  cargo lab build --yes        the same without questions, for example on a build server
  cargo lab build --check      exit with 0 if nothing is left to do, else with 1")]
pub struct Args {
    /// Only say whether everything is ready, and change nothing
    #[arg(long)]
    check: bool,
}

/// Runs `lab build`.
pub fn run(args: &Args, options: &Options) -> Result<ExitCode> {
    if args.check && !options.native {
        let ready = NestedHost::is_ready(&Cache::open()?)?;
        println!("{}", if ready { "everything is ready" } else { "not everything is ready: run `cargo lab build`" });
        return Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    match Machine::prepare(options)? {
        Machine::Native => println!("this machine's own KVM offers software-protected VMs: nothing else is needed"),
        Machine::Nested(host) => {
            println!("everything is ready; the nested host's kernel is {}", host.kernel().display())
        }
    }
    Ok(ExitCode::SUCCESS)
}
