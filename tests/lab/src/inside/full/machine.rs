//! A virtual machine of the full demonstration: umbra with all its devices, its API, and the way to log in to its guest.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use tempfile::TempDir;

use super::api::Api;
use super::group::Group;
use super::network::{MAC, TAP};
use super::ssh::Ssh;
use super::{Args, STEP, disk, peer, step};
use crate::inside::guest::{Guest, Isolation};
use crate::inside::markers;

/// The window of memory that the guest does not use, for conversions by the operator.
pub const WINDOW: u64 = 16 << 20;
/// The guest's address on vsock.
const CID: u32 = 3;

/// A kind of machine.
#[derive(Debug)]
pub struct Kind {
    /// What to call it.
    pub name: &'static str,
    /// What makes its memory unmappable.
    pub isolation: Isolation,
    /// How many processors it has.
    pub processors: u8,
    /// What is behind the isolation in `--platform`.
    pub platform: &'static str,
    /// What is behind the kernel's command line.
    pub command_line: &'static str,
}

impl Kind {
    /// With this isolation, and called after it.
    pub const fn of(isolation: Isolation, processors: u8) -> Self {
        Self { name: isolation.name(), isolation, processors, platform: "", command_line: "" }
    }
}

/// A running machine.
pub struct Vm<'a> {
    /// The umbra process.
    pub guest: Guest,
    /// Its control group.
    pub group: Group,
    /// Its API.
    pub api: Api,
    /// The way in.
    pub ssh: Ssh,
    /// What its canary is made of.
    pub seed: String,
    umbra: &'a Path,
    socket: PathBuf,
    // Sockets and disks. Gone last.
    folder: TempDir,
}

impl<'a> Vm<'a> {
    /// Starts umbra, for this kind of machine.
    pub fn start(args: &'a Args, kind: &Kind, seed: String) -> Result<Self> {
        let Kind { name, isolation, processors, platform, command_line: more } = *kind;
        // Paths of sockets must be short.
        let folder = tempfile::Builder::new().prefix("demo-").tempdir().context("cannot make a temporary folder")?;
        let root = folder.path().join("disk");
        step("copied the disk", || disk::copy(&args.image, &root))?;
        let socket = folder.path().join("api");
        let mut command = Command::new(&args.plan.umbra);
        command.arg("run").arg("--api-socket").arg(&socket);
        command.arg("--kernel").arg(&args.plan.kernel).arg("--initramfs").arg(&args.plan.initramfs);
        command.arg("--cmdline").arg(command_line(&seed, args.plan.show_console) + more);
        command.arg("--memory").arg(memory(&args.plan.memory, isolation));
        command.arg("--platform").arg(format!("isolation={}{platform}", isolation.name()));
        command.arg("--cpus").arg(format!("boot={processors}"));
        command.args(["--serial", "tty"]);
        command.arg("--disk").arg(with_path("path=", &root));
        command.arg("--net").arg(format!("tap={TAP},mac={MAC}"));
        command.arg("--vsock").arg(with_path(&format!("cid={CID},socket="), &folder.path().join("vsock")));
        let group = Group::create(&format!("umbra-demo-{name}"))?;
        let events = args.plan.folder.join(format!("events-{name}"));
        let guest = group.within(|| Guest::launch(command, events, args.plan.show_console))?;
        Ok(Self {
            group,
            api: Api::new(&socket),
            ssh: Ssh::new(&args.key, &args.known_hosts, folder.path(), guest.watch()),
            guest,
            seed,
            umbra: &args.plan.umbra,
            socket,
            folder,
        })
    }

    /// Waits for the guest to let us in; returns how long that took from the start.
    pub fn log_in(&mut self) -> Result<Duration> {
        let Self { guest, ssh, .. } = self;
        step("logged in over ssh", || ssh.log_in(STEP, || guest.check()))?;
        Ok(self.guest.started.elapsed())
    }

    /// Waits until the guest has sent more than so many bytes; returns how many.
    pub fn wait_above(&self, sent: &AtomicU64, than: u64) -> Result<u64> {
        let watch = self.guest.watch();
        peer::wait_above(sent, than, STEP, || watch.check())
    }

    /// Runs `umbra ctl`, and returns what it says.
    pub fn ctl(&self, arguments: &[OsString]) -> Result<String> {
        let mut command = Command::new(self.umbra);
        command.arg("ctl").arg("--socket").arg(&self.socket).args(arguments).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("cannot run {}", self.umbra.display()))?;
        let words = arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "umbra ctl {words} failed ({}): {}", output.status, said.trim());
        String::from_utf8(output.stdout).context("what umbra ctl says is not text")
    }

    /// A new disk of zeros for the machine; its path.
    pub fn new_disk(&self, bytes: u64) -> Result<PathBuf> {
        let path = self.folder.path().join("disk2");
        disk::create(&path, bytes)?;
        Ok(path)
    }

    /// See [`Guest::explain`].
    pub fn explain(self, error: Error, all_shown: bool) -> Error {
        self.guest.explain(error, all_shown)
    }
}

fn command_line(seed: &str, verbose: bool) -> String {
    let quiet = if verbose { "systemd.show_status=1" } else { "quiet" };
    format!("console=ttyS0 {quiet} net.ifnames=0 panic=-1 {}{seed}", markers::SEED_PARAMETER)
}

/// Only memory that is unmappable has a window to convert.
fn memory(size: &str, isolation: Isolation) -> String {
    match isolation {
        Isolation::Software => format!("size={size},unmappable=on,window={}M", WINDOW >> 20),
        Isolation::None => format!("size={size},unmappable=off"),
    }
}

/// `key=PATH`
pub fn with_path(keys: &str, path: &Path) -> OsString {
    let mut text = OsString::from(keys);
    text.push(path);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memory_is_unmappable_or_none_is() {
        assert_eq!(memory("1G", Isolation::Software), "size=1G,unmappable=on,window=16M");
        assert_eq!(memory("1G", Isolation::None), "size=1G,unmappable=off");
    }

    #[test]
    fn the_guest_is_told_its_seed() {
        assert!(command_line("abc", false).ends_with("panic=-1 umbra.seed=abc"));
    }
}
