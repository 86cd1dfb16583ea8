//! Byte by byte: requests as `ch-remote` sends them, answers as it reads them, and what is no request.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use kvm_tests::umbra::process::finish;
use rustix::process::geteuid;

use crate::Test;
use crate::bed::Bed;

pub const TESTS: &[Test] = &[
    ("ch_remote_s_framing_works", framing),
    ("what_is_no_request_is_refused", no_request),
    ("the_socket_is_the_owners", owner),
];

/// A user that is neither root nor whoever runs the tests.
const STRANGER: u32 = 65_534;

/// Sends it and reads until there is an end of the headers and as many bytes as they say, as `ch-remote` does.
fn exchange(bed: &Bed, request: &[u8]) -> anyhow::Result<(String, Option<String>)> {
    let mut stream = UnixStream::connect(bed.socket())?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
    stream.write_all(request)?;
    let mut text = String::new();
    let mut bytes = [0; 256];
    loop {
        let count = stream.read(&mut bytes)?;
        text += std::str::from_utf8(&bytes[..count])?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            ensure!(count > 0, "the answer ends early: {text:?}");
            continue;
        };
        let status = head.split("\r\n").next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).context("no status")?;
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
        let Some(length) = length else { return Ok((status.into(), None)) };
        if body.len() >= length.parse()? {
            return Ok((status.into(), Some(body.into())));
        }
    }
}

fn request(method: &str, command: &str, body: Option<&str>) -> Vec<u8> {
    let mut text = format!("{method} /api/v1/{command} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    if let Some(body) = body {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += body.unwrap_or_default();
    text.into_bytes()
}

fn framing() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    // All that follows the version is the status: a number and nothing else.
    let (status, body) = exchange(&bed, &request("GET", "vmm.ping", None))?;
    ensure!(status.trim().parse::<u16>()? == 200 && body.is_some_and(|body| body.contains("build_version")));
    let (status, body) = exchange(&bed, &request("PUT", "vm.create", Some(&bed.config().to_string())))?;
    ensure!(status.trim().parse::<u16>()? == 204 && body.is_none(), "{status} {body:?}");
    let (status, body) = exchange(&bed, &request("PUT", "vm.pause", None))?;
    let chain: Vec<String> = serde_json::from_str(&body.context("an error has a body")?)?;
    ensure!(status.trim().parse::<u16>()? == 405 && chain[0].contains("not booted"), "{status} {chain:?}");
    bed.ends()
}

fn no_request() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let huge = format!("PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", u64::MAX / 2);
    let (status, _) = exchange(&bed, huge.as_bytes())?;
    ensure!(status.trim() == "413", "{status}");
    let (status, _) = exchange(&bed, &request("PUT", "vm.create", Some("\u{0}")))?;
    ensure!(status.trim() == "400", "{status}");
    for garbage in [&b"\x16\x03\x01\x00\xa5\x01\x00\x00"[..], b"GET\r\n\r\n", b"\r\n\r\n\r\n", b""] {
        let mut stream = UnixStream::connect(bed.socket())?;
        stream.write_all(garbage)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
    }
    bed.does("vmm.ping", None).context("it serves on")?;
    bed.ends()
}

fn owner() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let mode = std::fs::metadata(bed.socket())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the mode is {mode:o}");
    // Others are told why they get nothing: by their own kernel, and by umbra where the owner opens the socket to them.
    std::fs::set_permissions(bed.folder.path(), Permissions::from_mode(0o755))?;
    let mut command = Command::new(kvm_tests::umbra::program()?);
    command.arg("ctl").arg("--socket").arg(bed.socket()).arg("ping").uid(STRANGER).stdin(Stdio::null());
    let own = geteuid().as_raw();
    let mut refused = |words: String| {
        let finished = finish(&mut command, Duration::from_secs(60))?;
        let fits = finished.status.code() == Some(1) && finished.stderr.contains(&words) && finished.stdout.is_empty();
        ensure!(fits, "{words:?} is missing: {finished:?}");
        anyhow::Ok(())
    };
    refused(format!("permission denied: the socket {} belongs to user {own}", bed.socket().display()))?;
    ensure!(bed.umbra.stderr().is_empty());
    std::fs::set_permissions(bed.socket(), Permissions::from_mode(0o666))?;
    refused(format!("permission denied: this API is that of user {own}, and you are user {STRANGER}"))?;
    let log = bed.umbra.stderr();
    ensure!(log.contains(&format!("refused a connection of user {STRANGER}")), "{log}");
    bed.does("vmm.ping", None).map(drop)
}
