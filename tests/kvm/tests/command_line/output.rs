//! Places to write to.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvm_tests::requirement::require_caps;
use kvm_tests::umbra::process::Running;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal};

use crate::{LIMIT, Test, Umbra};

pub const TESTS: &[Test] = &[
    ("a_serial_file_that_cannot_be_written_is_named", unwritable_serial),
    ("an_event_monitor_that_cannot_be_written_is_named", unwritable_events),
    ("an_event_monitor_s_reader_may_come_late", late_reader),
    ("an_output_that_nobody_reads_holds_up_no_end", blocked_output),
    ("the_console_goes_to_a_file_and_a_signal_ends_the_machine", serial_file),
];

fn unwritable_serial() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let places = [(umbra.path("missing/serial"), "No such file"), (umbra.folder.path().into(), "Is a directory")];
    for (path, reason) in places {
        let name = path.display().to_string();
        let serial = format!("file={name}");
        umbra.rejects(&mut umbra.run(&["--serial", &serial]), 1, &["serial", &name, reason])?;
    }
    Ok(())
}

fn unwritable_events() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let path = umbra.path("missing/events").display().to_string();
    let mut command =
        umbra.command(&["run", "--serial", "file=serial", "--event-monitor", &format!("path={path}"), "--kernel"]);
    command.arg(&umbra.kernel);
    umbra.rejects(&mut command, 1, &["event monitor", &path, "No such file"])
}

/// A named pipe whose reader comes once the guest runs.
fn late_reader() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let pipe = umbra.path("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR)?;
    let mut command = umbra.command(&["run", "--memory", "size=64M", "--kernel"]);
    command.arg(&umbra.kernel).arg("--serial").arg(format!("file={}", umbra.path("serial").display()));
    command.arg("--event-monitor").arg(format!("path={}", pipe.display())).stdin(Stdio::null());
    let deadline = Instant::now() + LIMIT;
    let mut running = Running::start(&mut command)?;
    comes_up(&umbra, &mut running, deadline)?;
    let mut reader = File::open(&pipe)?;
    running.signal(Signal::TERM)?;
    let status = running.wait_before(deadline)?;
    ensure!(status.code() == Some(0), "umbra ended with {status}: {}", running.stderr());
    let mut events = String::new();
    reader.read_to_string(&mut events)?;
    ensure!(events.contains("\"booted\"") && events.contains("\"shutdown\""), "the events are {events}");
    Ok(())
}

/// Waits until the guest says that it is up; then it waits for a task.
fn comes_up(umbra: &Umbra, running: &mut Running, deadline: Instant) -> anyhow::Result<()> {
    let serial = umbra.path("serial");
    while !std::fs::read_to_string(&serial).is_ok_and(|text| text.starts_with("up ") && text.ends_with('\n')) {
        ensure!(Instant::now() < deadline, "the guest says nothing: {}", running.stderr());
        ensure!(running.try_wait()?.is_none(), "umbra ended: {}", running.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A pipe that is full already: the guest's first word to its console waits.
fn blocked_output() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let (reader, writer) = rustix::pipe::pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false)?;
    let events = umbra.path("events").display().to_string();
    let mut command = Command::new(&umbra.program);
    command.args(["run", "--memory", "size=64M", "--event-monitor", &format!("path={events}"), "--kernel"]);
    let mut child = command.arg(&umbra.kernel).stdin(Stdio::null()).stdout(writer).spawn()?;
    let deadline = Instant::now() + LIMIT;
    while !std::fs::read_to_string(&events).is_ok_and(|text| text.contains("\"booted\"")) {
        ensure!(Instant::now() < deadline && child.try_wait()?.is_none(), "umbra does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Time to run into the pipe.
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM)?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("umbra hangs at its output");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    ensure!(status.code() == Some(0), "umbra ended with {status}");
    drop(reader);
    Ok(())
}

fn serial_file() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    let deadline = Instant::now() + LIMIT;
    let mut running = Running::start(&mut umbra.run(&["--memory", "size=64M"]))?;
    comes_up(&umbra, &mut running, deadline)?;
    running.signal(Signal::TERM)?;
    let status = running.wait_before(deadline)?;
    ensure!(status.code() == Some(0), "umbra ended with {status}: {}", running.stderr());
    let stdout = running.take_stdout_lines().context("there is no output")?.rest_before(deadline);
    ensure!(stdout.is_empty() && running.stderr().is_empty(), "umbra said {stdout:?}, {:?}", running.stderr());
    let text = std::fs::read_to_string(umbra.path("events"))?;
    let mut names = Vec::new();
    for event in serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>() {
        let event = event?;
        names.extend([&event["source"], &event["event"]].map(|part| part.as_str().unwrap_or("?").to_owned()));
    }
    // From the first moment on, although the file is written only once it is known that the machine can be built.
    let expected =
        "vmm starting, vm created, vm booting, vm booted, memory stats, vm shutdown, vm deleted, vmm shutdown";
    let names: Vec<_> = names.chunks(2).map(|name| name.join(" ")).collect();
    ensure!(names.join(", ") == expected, "the events are {names:?}");
    Ok(())
}
