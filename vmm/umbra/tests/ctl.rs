//! `umbra ctl` as a process, against the API on the model: what it does when nobody reads its output any more, and
//! its exit statuses, with those of other commands.

#![expect(clippy::unwrap_used, reason = "what helpers of a test can't do fails it")]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_api::model::ModelHost;
use umbra_api::server::Server;
use umbra_api::types::VmConfig;
use umbra_api::{Controller, Settings};
use vmm::events::EventMonitor;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

struct Bed {
    controller: Arc<Controller>,
    server: Option<Server>,
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Arc::new(ModelHost::default());
        let (controller, _) = Controller::new(host, Arc::new(EventMonitor::new()), Settings { keep: true });
        let server = Some(Server::start(&folder.path().join("api"), controller.clone()).unwrap());
        Self { controller, server, folder }
    }

    fn create(&self) {
        let config = r#"{"payload":{"kernel":"/proc/self/exe"},"memory":{"size":67108864}}"#;
        self.controller.create(serde_json::from_str::<VmConfig>(config).unwrap()).unwrap();
    }

    fn ctl(&self, arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command.args(["ctl", "--socket"]).arg(self.folder.path().join("api")).args(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        (child, output)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.server.take().into_iter().for_each(Server::end);
    }
}

/// It ends without a word, if `nudge` makes it write again.
fn ends(child: Child, nudge: impl Fn()) {
    let mut child = child;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("it goes on though nobody reads");
        }
        nudge();
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(status.success() && said.is_empty(), "{status}: {said}");
}

#[test]
fn events_come_as_they_happen_until_nobody_reads() {
    for arguments in [&["events"][..], &["call", "vm.events"]] {
        let bed = Bed::new();
        let (child, mut output) = bed.ctl(arguments);
        let mut first = String::new();
        // It may not listen yet.
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| output.read_line(&mut first).unwrap());
            while !reading.is_finished() {
                bed.create();
                bed.controller.delete();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(first.contains("vm."), "{first}");
        drop(output);
        ends(child, || {
            bed.create();
            bed.controller.delete();
        });
    }
}

#[test]
fn watching_ends_when_nobody_reads() {
    let bed = Bed::new();
    bed.create();
    bed.controller.boot(|| Ok::<_, ()>(())).unwrap().unwrap();
    let (child, mut output) = bed.ctl(&["memory", "watch", "--interval", "0.05"]);
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    assert!(first.contains("Guest memory: 64 MiB"), "{first}");
    drop(output);
    ends(child, || ());
}

/// Status, standard output and standard error of the program with these arguments.
fn program(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
    let output = command.args(arguments).env_remove("UMBRA_SOCKET").stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_body_that_is_too_large_is_refused_with_the_reason() {
    let bed = Bed::new();
    let (config, socket) = (bed.folder.path().join("config"), bed.folder.path().join("api"));
    // More than a socket holds: umbra answers, and closes the connection, while most of it is still to be sent.
    std::fs::write(&config, format!("\"{}\"", "x".repeat(3 << 20))).unwrap();
    let (status, said, error) =
        program(&["ctl", "--socket", socket.to_str().unwrap(), "create", config.to_str().unwrap()]);
    assert_eq!((status, said.as_str(), error.as_str()), (Some(1), "", "umbra: the body has more than 1048576 bytes\n"));
}

#[test]
fn what_to_say_must_make_sense() {
    for (asked, expected) in [("vmm=nonsense,,=", Some(2)), ("warn,vmm=debug", Some(0)), ("", Some(0))] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        let output = command.args(["completions", "bash"]).env("UMBRA_LOG", asked).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), expected, "{error}");
        assert_eq!(error.contains("UMBRA_LOG makes no sense"), expected == Some(2), "{error}");
    }
}

#[test]
fn exit_statuses_are_as_help_says() {
    let bed = Bed::new();
    let socket = bed.folder.path().join("api");
    let ctl = |arguments: &[&str]| program(&[&["ctl", "--socket", socket.to_str().unwrap()], arguments].concat());
    let (status, said, error) = ctl(&["ping"]);
    assert!(status == Some(0) && said.contains("build_version") && error.is_empty(), "{status:?} {said} {error}");
    let (status, said, error) = ctl(&["boot"]);
    let expected = "umbra: there is no machine: create one with umbra ctl create\n";
    assert!(status == Some(1) && said.is_empty() && error == expected, "{status:?} {said} {error}");
    for (arguments, expected) in [
        (&["ctl", "--socket", "/no/such", "ping"][..], 1),
        (&["ctl", "ping"], 1),
        (&["ctl", "walk"], 2),
        // Whether this host can do anything or not: there is no such kernel.
        (&["run", "--kernel", "/no/such", "--serial", "null"], 1),
        (&["run", "--kernel", "/no/such", "--cpus", "boot=2,max=4"], 2),
        (&["run"], 2),
        (&["run", "--api-socket", "fd=3"], 2),
        (&["ctl", "--socket", "/no/such", "--json", "metrics"], 2),
        (&["ctl", "--socket", "/no/such", "memory", "watch", "--json"], 2),
        (&["ctl", "--socket", "/no/such", "memory", "map", "--svg", "/no/such", "--json"], 2),
        (&["check", "--walk"], 2),
    ] {
        let (status, said, error) = program(arguments);
        assert!(status == Some(expected) && said.is_empty() && !error.is_empty(), "{arguments:?}: {status:?} {error}");
    }
    for (command, statuses) in [("run", 3), ("ctl", 3), ("check", 3)] {
        let (status, help, _) = program(&[command, "--help"]);
        let listed = help.split("Exit status:\n").nth(1).unwrap_or_default();
        let listed = (0..3).filter(|n| listed.contains(&format!("  {n}  "))).count();
        assert!(status == Some(0) && listed == statuses, "{help}");
    }
    let (_, help, _) = program(&["ctl", "info", "--help"]);
    let (own, global) = help.split_once("Global options:").unwrap();
    assert!(!own.contains("-v") && global.contains("-v...") && global.contains("UMBRA_SOCKET"), "{help}");
}
