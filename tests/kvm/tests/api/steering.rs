//! `umbra ctl`, events, and how the process ends.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvm_tests::hostile::{Boot, HostileGuest};
use kvm_tests::umbra::process::{Finished, Running, finish};
use serde_json::Value;
use umbra_api::client::{Client, ClientError};

use crate::Test;
use crate::bed::{Bed, does, may_not};

pub const TESTS: &[Test] = &[
    ("ctl_steers_a_machine", ctl),
    ("events_come_as_they_happen", events),
    ("a_guest_that_powers_off_ends_the_process_unless_it_is_to_stay", power_off),
    ("a_socket_in_use_is_an_error", in_use),
    ("who_asks_at_once_finds_the_machine_of_the_command_line_running", at_once),
];

const LIMIT: Duration = Duration::from_secs(300);

fn run(socket: &std::path::Path, arguments: &[&str]) -> anyhow::Result<Finished> {
    let mut command = Command::new(kvm_tests::umbra::program()?);
    command.args(["ctl", "--socket"]).arg(socket).args(arguments).stdin(Stdio::null());
    finish(&mut command, LIMIT).with_context(|| format!("umbra ctl {arguments:?}"))
}

fn ctl() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let socket = bed.socket();
    let does = |arguments: &[&str]| {
        let finished = run(&socket, arguments)?;
        ensure!(finished.status.success(), "{arguments:?}: {finished:?}");
        Ok(finished.stdout)
    };
    let config = bed.folder.path().join("config.json");
    std::fs::write(&config, bed.config().to_string())?;
    let failed = run(&socket, &["boot"])?;
    ensure!(
        failed.status.code() == Some(1) && failed.stderr.contains("create one with umbra ctl create"),
        "{failed:?}"
    );
    does(&["create", &config.to_string_lossy()])?;
    does(&["boot"])?;
    bed.comes_up(1)?;
    let info = does(&["info"])?;
    // The configuration leaves the isolation open.
    ensure!(info.contains("state       Running") && info.contains("isolation   software"), "{info}");
    ensure!(serde_json::from_str::<Value>(&does(&["info", "--json"])?)?["state"] == "Running");
    let map = does(&["memory", "map"])?;
    ensure!(map.contains("private (window)") && !map.contains('\x1b'), "{map}");
    ensure!(does(&["memory", "stats"])?.contains("ram_bytes              64 MiB"));
    let converted = does(&["memory", "convert", "--gpa", "0x3000000", "--size", "16K", "--to", "shared", "--discard"])?;
    ensure!(converted.contains("discarded"), "{converted}");
    let watched = does(&["memory", "watch", "--count", "2", "--interval", "0.1"])?;
    ensure!(watched.matches("Guest memory: 64 MiB").count() == 2 && watched.contains("shared 16 KiB"), "{watched}");
    let svg = bed.folder.path().join("map.svg");
    does(&["memory", "map", "--svg", &svg.to_string_lossy()])?;
    ensure!(std::fs::read_to_string(&svg)?.starts_with("<svg"));
    ensure!(does(&["memory", "policy", "host=refuse"])?.contains("refuse"));
    let unsupported = run(&socket, &["call", "vm.snapshot"])?;
    ensure!(unsupported.stderr.contains("private memory can't be read"), "{unsupported:?}");
    does(&["pause"])?;
    does(&["resume"])?;
    does(&["delete"])?;
    bed.ends()
}

fn events() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let lines = bed.client.lines("vm.events")?;
    bed.does("vm.create", Some(bed.config()))?;
    bed.does("vm.boot", None)?;
    let mut names = Vec::new();
    for line in lines {
        names.extend(line?.strip_prefix("event: ").map(str::to_owned));
        // Its launch makes all of memory private. The clock says when that is told, and so between which others.
        if ["memory.conversions", "vm.booted"].iter().all(|end| names.iter().any(|name| name == end)) {
            break;
        }
    }
    names.retain(|name| name.starts_with("vm."));
    ensure!(names == ["vm.created", "vm.booting", "vm.booted"], "{names:?}");
    bed.ends()
}

fn power_off() -> anyhow::Result<()> {
    let guest = HostileGuest::boot_with(&Boot { api: true, ..Boot::default() })?;
    let socket = guest.api_socket();
    ensure!(guest.powers_off()?.status.success());
    ensure!(!socket.exists(), "the socket is left");

    let bed = Bed::new(&["--no-shutdown"])?;
    bed.does("vm.create", Some(bed.config()))?;
    bed.does("vm.boot", None)?;
    bed.comes_up(1)?;
    bed.does("vm.shutdown", None)?;
    bed.does("vm.boot", None)?;
    bed.ends()
}

fn in_use() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let mut second = Command::new(kvm_tests::umbra::program()?);
    second.args(["run", "--api-socket"]).arg(bed.socket()).stdin(Stdio::null());
    let second = finish(&mut second, LIMIT)?;
    ensure!(second.status.code() == Some(1) && second.stderr.contains("in use by another process"), "{second:?}");
    bed.does("vmm.ping", None).context("the first serves on")?;
    bed.ends()
}

fn at_once() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let path = |name| bed.folder.path().join(name);
    let (kernel, socket, events) = (path("vmlinux"), path("other"), path("events"));
    for operation in ["vmm.ping", "vm.boot", "vm.delete"].repeat(3) {
        let mut command = Command::new(kvm_tests::umbra::program()?);
        command.arg("run").arg("--kernel").arg(&kernel).arg("--api-socket").arg(&socket).stdin(Stdio::null());
        command.args(["--cmdline", "hostile", "--serial", "null", "--memory", "size=64M,unmappable=on"]);
        command.args(["--event-monitor", &format!("path={}", events.display())]);
        let mut umbra = Running::start(&mut command)?;
        let client = Client::new(&socket);
        // The first moment that anything can be asked.
        let answer = loop {
            match client.call(operation, &[], None, "application/json") {
                Err(ClientError::Connect { .. }) if Instant::now() < bed.deadline => std::thread::yield_now(),
                answer => break answer,
            }
        };
        let booted = std::fs::read_to_string(&events)?.contains("\"booted\"");
        ensure!(booted, "{operation} was answered before the machine ran");
        match (operation, answer) {
            ("vmm.ping", Ok(_)) => {}
            ("vm.boot", Err(ClientError::Refused { status: 405, .. })) => {
                ensure!(does(&client, "vm.info", None)?["state"] == "Running");
            }
            ("vm.delete", Ok(_)) => may_not(&client, "vm.info", None, 404, "there is no machine")?,
            other => anyhow::bail!("{other:?}; umbra says {:?}", umbra.stderr()),
        }
        does(&client, "vmm.shutdown", None)?;
        let status = umbra.wait_before(bed.deadline)?;
        ensure!(status.success() && umbra.stderr().is_empty(), "{operation}: {status}: {}", umbra.stderr());
        ensure!(!socket.exists(), "the socket is left");
    }
    bed.ends()
}
