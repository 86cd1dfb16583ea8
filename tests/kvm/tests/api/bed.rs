//! An `umbra` that serves the API and waits for a machine.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use kvm_tests::hostile::vmlinux;
use kvm_tests::requirement::{require, require_caps};
use kvm_tests::umbra::process::Running;
use serde_json::{Value, json};
use tempfile::TempDir;
use umbra_api::client::{Client, ClientError};

/// How long all of it may take.
const LIFE: Duration = Duration::from_secs(900);

/// The process, and how to reach it.
pub struct Bed {
    pub umbra: Running,
    pub client: Client,
    pub folder: TempDir,
    pub deadline: Instant,
}

impl Bed {
    /// Starts it, with these options besides.
    pub fn new(options: &[&str]) -> anyhow::Result<Self> {
        let kvm = require_caps(&[])?;
        require(kvm.caps(), Isolation::Software.requirements())?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("vmlinux"), vmlinux())?;
        let socket = folder.path().join("api");
        let mut command = Command::new(kvm_tests::umbra::program()?);
        command.arg("run").arg("--api-socket").arg(&socket).args(options).stdin(Stdio::null());
        let bed = Self {
            umbra: Running::start(&mut command)?,
            client: Client::new(&socket),
            folder,
            deadline: Instant::now() + LIFE,
        };
        // There is a moment when the socket is there and nobody listens yet.
        while bed.client.call("vmm.ping", &[], None, "application/json").is_err() {
            bed.waits("the API")?;
        }
        Ok(bed)
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api")
    }

    /// Waits a little for something.
    pub fn waits(&self, what: &str) -> anyhow::Result<()> {
        ensure!(Instant::now() < self.deadline, "no sign of {what}; umbra says {:?}", self.umbra.stderr());
        sleep(Duration::from_millis(10));
        Ok(())
    }

    /// The configuration of a machine of 64 MiB with a window of 16 MiB.
    pub fn config(&self) -> Value {
        json!({
            "payload": { "kernel": self.folder.path().join("vmlinux"), "cmdline": "hostile" },
            "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
            "memory": { "size": 64 << 20, "unmappable": true, "window": 16 << 20 },
            "platform": { "isolation": "auto" },
            "serial": { "mode": "File", "file": self.folder.path().join("serial") },
            "console": { "mode": "Off" },
        })
    }

    /// An operation that must succeed, and its answer.
    pub fn does(&self, operation: &str, body: Option<Value>) -> anyhow::Result<Value> {
        does(&self.client, operation, body)
    }

    /// An operation that must be refused with this status, and this in the chain of causes.
    pub fn may_not(&self, operation: &str, body: Option<Value>, status: u16, words: &str) -> anyhow::Result<()> {
        may_not(&self.client, operation, body, status, words)
    }

    /// Waits until the guest's kernel says that it runs, so many times.
    pub fn comes_up(&self, times: usize) -> anyhow::Result<()> {
        let count = || std::fs::read(self.folder.path().join("serial")).map_or(0, |text| lines(&text));
        while count() < times {
            self.waits("the guest")?;
        }
        Ok(())
    }

    /// Asks for the end, and checks that nothing is left.
    pub fn ends(mut self) -> anyhow::Result<()> {
        self.does("vmm.shutdown", None)?;
        let status = self.umbra.wait_before(self.deadline)?;
        ensure!(status.success(), "umbra ended with {status}: {}", self.umbra.stderr());
        ensure!(!self.socket().exists(), "the socket is left");
        ensure!(self.umbra.stderr().is_empty(), "umbra said {:?}", self.umbra.stderr());
        Ok(())
    }
}

fn lines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

pub fn does(client: &Client, operation: &str, body: Option<Value>) -> anyhow::Result<Value> {
    let answer = client.call(operation, &[], body.as_ref(), "application/json").context(operation.to_owned())?;
    if answer.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("the answer of {operation} is no JSON"))
}

pub fn may_not(client: &Client, operation: &str, body: Option<Value>, status: u16, words: &str) -> anyhow::Result<()> {
    match client.call(operation, &[], body.as_ref(), "application/json") {
        Err(ClientError::Refused { status: found, chain }) => {
            ensure!(found == status, "{operation} was answered with {found} {chain:?}, expected {status}");
            ensure!(chain.iter().any(|text| text.contains(words)), "{operation}: {words:?} is not in {chain:?}");
            Ok(())
        }
        other => bail!("{operation} came to {other:?}, expected {status}"),
    }
}
