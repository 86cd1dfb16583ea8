//! Where the lab runs things: a nested host, or this machine itself with `--native`.
//!
//! Inside, this machine's files are seen under the same paths, so a program that was built outside runs by its path, and
//! what a job writes into its output folder stays. Everything else that it writes in a nested host is gone afterwards.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::options::Options;

mod emulator;
mod host_memory;
mod live;
mod native;
mod nested;
mod qemu;
mod script;
mod stream;
mod terminal;

pub use nested::NestedHost;

/// The exit status of a job that its time limit ended, as of timeout(1).
pub const TIMED_OUT: i32 = 124;
/// The exit status of a job whose output nobody reads any more: SIGPIPE, as a shell tells it.
const OUTPUT_CLOSED: i32 = 141;

/// A command to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// Variables on top of PATH, HOME, the locale and a few more.
    pub env: Vec<(OsString, OsString)>,
    /// The folder that is shared read-write, at the same path. It is created if need be.
    pub out: PathBuf,
    /// How long the job may take, start of the machine included.
    pub time_limit: Duration,
    /// What the command's input and output are.
    pub terminal: Terminal,
}

/// What the input and the output of a job are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// Output is streamed as it comes, on standard output and standard error; the input is empty.
    Stream,
    /// The user's terminal, in raw mode while the job runs. Ctrl-] three times in a row ends the job.
    Interactive,
}

/// A machine with a KVM that has private memory.
#[derive(Debug)]
pub enum Machine {
    /// A machine emulated by QEMU, with the lab's kernel.
    Nested(NestedHost),
    /// This machine.
    Native,
}

impl Machine {
    /// The machine that the options ask for, with everything that it needs made ready.
    pub fn prepare(options: &Options) -> Result<Self> {
        if options.native {
            native::check().context("--native cannot be used on this machine")?;
            return Ok(Self::Native);
        }
        Ok(Self::Nested(NestedHost::prepare(options, &Cache::open()?)?))
    }

    /// Runs a job and returns its exit status: 128 plus the signal's number if a signal ended it, 124 if the time limit
    /// did. An error means that the machine failed, not the job.
    pub fn run(&self, job: &Job) -> Result<i32> {
        std::fs::create_dir_all(&job.out)
            .with_context(|| format!("cannot create the output folder {}", job.out.display()))?;
        let out =
            job.out.canonicalize().with_context(|| format!("cannot read the output folder {}", job.out.display()))?;
        let job = Job { out, ..job.clone() };
        match self {
            Self::Nested(host) => host.run(&job),
            Self::Native => native::run(&job),
        }
    }
}

fn report_time_limit(limit: Duration) {
    eprintln!("lab: the time limit of {} s is over: ended what ran inside", limit.as_secs());
}
