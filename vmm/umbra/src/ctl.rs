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
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::CommandFactory;
use clap::error::ErrorKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use umbra_api::client::{Answer, Client, ClientError};

use command::{Command, no_json};

/// Steer a machine through the socket that `umbra run --api-socket` serves.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status:
  0  it is done; also when nobody reads what events and memory watch write any more
  1  umbra refused it, or does not answer; the reason is on standard error
  2  a command line that makes no sense; nothing was asked for

Environment:
  UMBRA_SOCKET  the socket; instead of --socket

Examples:
  umbra ctl --socket /run/umbra.sock info
  umbra ctl --socket /run/umbra.sock memory watch
  umbra ctl --socket /run/umbra.sock memory map --svg memory.svg")]
pub struct Args {
    /// The socket.
    #[arg(long, global = true, help_heading = crate::GLOBAL, value_name = "PATH", env = "UMBRA_SOCKET")]
    socket: Option<PathBuf>,
    /// Write the API's JSON. Not for metrics, memory watch and pictures of memory, which are none.
    #[arg(long, global = true, help_heading = crate::GLOBAL)]
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
    if let Some(what) = no_json(&args.command).filter(|_| args.json) {
        let message = format!("the API has no JSON for {what}: leave --json out");
        crate::Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    let session = Session { client: Client::new(socket).telling(PATIENCE, tell_that_it_is_late), json: args.json };
    match session.run(&args.command) {
        Err(error) if !error.is::<Closed>() => Err(in_words_of_ctl(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn tell_that_it_is_late() {
    eprintln!("umbra: no answer yet: what serves the socket is busy, or has been stopped");
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

/// The command that calls an operation of this name, if one does: `memory map` for `vm.memory-map`.
fn command_of(operation: &str) -> Option<String> {
    let cli = crate::Cli::command();
    let ctl = cli.find_subcommand("ctl")?;
    if let Some((_, name)) = operation.split_once(".memory-") {
        let name = name.trim_end_matches(".set");
        return ctl.find_subcommand("memory")?.find_subcommand(name).map(|_| format!("memory {name}"));
    }
    let (group, name) = operation.split_once('.')?;
    let names = [operation.replace('.', "-"), name.to_owned(), group.to_owned()];
    names.into_iter().find(|name| ctl.find_subcommand(name).is_some())
}

/// An error whose remedies are commands, where umbra's are operations of its API.
fn in_words_of_ctl(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { chain, .. }) => anyhow!("{}", commands_for_operations(&chain.join(": "))),
        _ => error,
    }
}

/// The text with commands in place of operations.
fn commands_for_operations(text: &str) -> String {
    let operations = Client::operations();
    let part = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-' || c == '_' || c == '/';
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(part) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !part(c)).unwrap_or(from.len()));
        let command = Some(word).filter(|word| operations.contains(word)).and_then(command_of);
        let command = command.map(|command| format!("umbra ctl {command}"));
        out.push_str(before);
        out.push_str(command.as_deref().unwrap_or(word));
        rest = after;
    }
    out + rest
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use clap::Parser;
    use umbra_api::routes::unsupported::UNSUPPORTED;

    use super::*;

    static TOLD: AtomicUsize = AtomicUsize::new(0);

    fn count() {
        TOLD.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn an_answer_that_is_late_is_told_of_whatever_was_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, picture) = (folder.path().join("api"), folder.path().join("picture"));
        let listener = UnixListener::bind(&socket).unwrap();
        let picture = ["memory", "map", "--svg", picture.to_str().unwrap()];
        let commands = [&["ping"][..], &["metrics"], &["call", "vmm.ping"], &["events"], &picture];
        for (i, command) in commands.into_iter().enumerate() {
            let cli = crate::Cli::try_parse_from([&["umbra", "ctl"], command].concat()).ok().unwrap();
            let crate::Command::Ctl(args) = cli.command else { panic!("it is ctl") };
            let client = Client::new(&socket).telling(Duration::from_millis(1), count);
            let asking = std::thread::spawn(move || Session { client, json: false }.run(&args.command).unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let limit = std::time::Instant::now() + Duration::from_secs(60);
            while TOLD.load(Ordering::SeqCst) <= i && std::time::Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The answer comes all the same.
            let answer = b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n";
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            stream.write_all(answer).unwrap();
            asking.join().unwrap();
            assert_eq!(TOLD.load(Ordering::SeqCst), i + 1, "{command:?}");
        }
    }

    #[test]
    fn each_operation_has_a_command() {
        let operations = Client::operations();
        assert!(operations.len() > 35);
        for operation in operations {
            let unsupported = UNSUPPORTED.iter().any(|(path, _, _)| path[1..] == *operation);
            assert_eq!(command_of(operation).is_none(), unsupported, "{operation}");
        }
    }

    #[test]
    fn remedies_are_commands_here() {
        for (text, expected) in [
            ("there is no machine: create one with vm.create", "there is no machine: create one with umbra ctl create"),
            ("vm.info lists those it has", "umbra ctl info lists those it has"),
            ("see vm.memory-map, or vmm.shutdown.", "see umbra ctl memory map, or vmm.shutdown."),
            ("cannot read kernel /x/vm.boot: vm.bootx", "cannot read kernel /x/vm.boot: vm.bootx"),
            ("vm.snapshot is not supported", "vm.snapshot is not supported"),
            ("", ""),
        ] {
            assert_eq!(commands_for_operations(text), expected);
        }
        assert_eq!(command_of("vmm.shutdown").as_deref(), Some("vmm-shutdown"));
        assert_eq!(command_of("vm.shutdown").as_deref(), Some("shutdown"));
    }
}
