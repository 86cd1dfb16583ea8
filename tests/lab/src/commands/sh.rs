//! `cargo lab sh`: a shell or a command inside.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use super::exit_code;
use crate::machine::{Job, Machine, Terminal};
use crate::options::Options;
use crate::workspace;

/// Options of `lab sh`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Inside, this machine's files have the same paths. What is written into $UMBRA_LAB_OUT is kept; what
is written elsewhere is gone afterwards. The exit status is the command's, or 124 if the time limit
ended it. In a shell, Ctrl-] three times in a row ends the nested host.

Examples:
  cargo lab sh                                    a shell
  cargo lab sh -- target/debug/umbra check        a command that was built here
  cargo lab sh -t -- top                          a command that wants a terminal
  cargo lab sh --out /tmp/out -- sh -c 'dmesg > $UMBRA_LAB_OUT/dmesg'
  cargo lab sh < script                           a script")]
pub struct Args {
    /// The folder that is shared read-write [default: lab/sh in cargo's target folder]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Give the command this terminal
    #[arg(long, short, requires = "command")]
    tty: bool,

    /// The command and its arguments; a shell when absent
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long a command may take, and a user in a shell.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);
const SHELL_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Runs `lab sh`.
pub fn run(args: &Args, options: &Options) -> Result<ExitCode> {
    let machine = Machine::prepare(options)?;
    let script;
    let (argv, terminal, limit) = if !args.command.is_empty() {
        let terminal = if args.tty { Terminal::Interactive } else { Terminal::Stream };
        (args.command.clone(), terminal, COMMAND_LIMIT)
    } else if std::io::stdin().is_terminal() {
        (vec!["bash".into()], Terminal::Interactive, SHELL_LIMIT)
    } else {
        script = save_script(std::io::stdin().lock()).context("cannot read a script from standard input")?;
        (vec!["bash".into(), script.path().into()], Terminal::Stream, COMMAND_LIMIT)
    };
    let out = args.out.clone().unwrap_or_else(|| workspace::default_out("sh"));
    let job = Job { argv, env: Vec::new(), out, time_limit: options.time_limit(limit), terminal };
    Ok(exit_code(machine.run(&job)?))
}

/// Keeps a script in a file, which is seen inside under the same path.
fn save_script(mut input: impl std::io::Read) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::with_prefix("umbra-lab-script-")?;
    std::io::copy(&mut input, &mut file)?;
    file.flush()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_kept_as_it_is() {
        let script = b"echo \xff\necho 'b'";
        let file = save_script(&script[..]).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), script);
    }
}
