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

use anyhow::Context;
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
    #[arg(long, value_name = "PATH", env = "UMBRA_SOCKET")]
    socket: PathBuf,
    /// Write the API's JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// What commands work with.
pub struct Session {
    client: Client,
    json: bool,
}

pub fn ctl(args: &Args) -> anyhow::Result<ExitCode> {
    let session = Session { client: Client::new(&args.socket), json: args.json };
    session.run(&args.command)?;
    Ok(ExitCode::SUCCESS)
}

impl Session {
    fn call(&self, operation: &str, query: &[(&str, String)], body: Option<&Value>) -> anyhow::Result<Answer> {
        Ok(self.client.call(operation, query, body, "application/json")?)
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

/// Writes to standard output. Who closes it has seen enough.
fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}
