//! `umbra ctl`: steer a machine through its API.
//!
//! Each command is one operation of the API's document, called by its name; `call` reaches all of them. Answers are tables
//! for people, or the API's own JSON with --json.

mod command;
mod memory;
mod table;
mod watch;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use umbra_api::client::{Answer, Client};

use command::Command;

/// Steer a machine through the socket that `umbra run --api-socket` serves.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  umbra ctl --socket /run/umbra.sock info
  umbra ctl --socket /run/umbra.sock memory watch
  umbra ctl --socket /run/umbra.sock memory map --svg memory.svg")]
pub struct Args {
    /// The socket.
    #[arg(long, global = true, value_name = "PATH", env = "UMBRA_SOCKET")]
    socket: Option<PathBuf>,
    /// Write the API's JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// How long an answer may take before that is told.
const PATIENCE: Duration = Duration::from_secs(5);

/// What commands work with.
pub struct Session {
    client: Client,
    json: bool,
}

pub fn ctl(args: &Args) -> anyhow::Result<ExitCode> {
    let socket = args.socket.as_ref().context("say which socket umbra serves: --socket PATH, or UMBRA_SOCKET")?;
    let session = Session { client: Client::new(socket), json: args.json };
    match session.run(&args.command) {
        Err(error) if !error.is::<Closed>() => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

impl Session {
    fn call(&self, operation: &str, query: &[(&str, String)], body: Option<&Value>) -> anyhow::Result<Answer> {
        let (answered, answer) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if answer.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("umbra: no answer yet: what serves the socket is busy, or has been stopped");
            }
        });
        let result = self.client.call(operation, query, body, "application/json");
        drop(answered);
        Ok(result?)
    }

    /// Calls an operation and shows its answer, as a table by `show` or as it is.
    fn show(&self, operation: &str, body: Option<&Value>, show: impl Fn(&Value) -> String) -> anyhow::Result<()> {
        let answer = self.call(operation, &[], body)?;
        self.print(&answer, show)
    }

    fn print(&self, answer: &Answer, show: impl Fn(&Value) -> String) -> anyhow::Result<()> {
        if answer.body.is_empty() {
            return Ok(());
        }
        let value: Value = serde_json::from_slice(&answer.body).context("umbra's answer is no JSON")?;
        let text = if self.json { format!("{value:#}\n") } else { show(&value) };
        write_out(text.as_bytes())
    }
}

/// Nobody reads standard output any more: who closed it has seen enough.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads standard output")
    }
}

impl std::error::Error for Closed {}

/// Ends a command whose output nobody reads any more, by an error that is none to its caller.
fn check_reader() -> anyhow::Result<()> {
    let stdout = std::io::stdout();
    let mut state = [PollFd::new(&stdout, PollFlags::empty())];
    let _ = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    if state[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) { Err(Closed.into()) } else { Ok(()) }
}

/// Writes to standard output. That nobody reads it ends the command.
fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Closed.into()),
        result => result.context("cannot write to standard output"),
    }
}
