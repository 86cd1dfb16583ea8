//! `umbra ctl` as a process, against the API on the model: what it does when nobody reads its output any more.

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
