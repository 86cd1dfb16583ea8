//! The `umbra` command line: what bad arguments, bad files and unfit hosts get.
//!
//! Whatever is wrong, the program says so in one error that names the thing and what to do, ends with status 1 (2 for a
//! command line that makes no sense), and leaves nothing behind: no file, no process. [`Umbra::rejects`] checks all of
//! that each time.

mod check;
mod device;
mod files;
mod isolation;
mod memory;
mod output;
mod usage;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use kvm_tests::hostile::vmlinux;
use kvm_tests::trial::trial;
use kvm_tests::umbra::process::{Finished, finish};
use libtest_mimic::Arguments;
use rustix::io::Errno;
use rustix::process::test_kill_process_group;
use tempfile::TempDir;

/// A named test.
type Test = (&'static str, fn() -> anyhow::Result<()>);

/// How long a rejection may take, in the lab and when much else runs. Most take less than a second; the map of 9 TiB of memory,
/// which a debug build sets up word by word, takes ten.
const LIMIT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests =
        [usage::TESTS, files::TESTS, memory::TESTS, isolation::TESTS, device::TESTS, output::TESTS, check::TESTS];
    let trials = tests.into_iter().flatten().map(|(name, test)| trial(name, *test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The program, and a folder with a kernel that it can boot.
struct Umbra {
    program: PathBuf,
    folder: TempDir,
    kernel: PathBuf,
}

impl Umbra {
    fn new() -> anyhow::Result<Self> {
        let program = kvm_tests::umbra::program()?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, vmlinux())?;
        Ok(Self { program, folder, kernel })
    }

    /// A path in the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file in the folder.
    fn file(&self, name: &str, contents: &[u8]) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The program with these arguments.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command
    }

    /// `umbra run` with a kernel that works, these arguments, and files to write to if all goes well.
    fn run(&self, arguments: &[&str]) -> Command {
        self.run_kernel(&self.kernel, arguments)
    }

    /// The same with another kernel.
    fn run_kernel(&self, kernel: &Path, arguments: &[&str]) -> Command {
        let event_monitor = format!("path={}", self.path("events").display());
        let mut command = self.command(&["run", "--event-monitor", &event_monitor, "--kernel"]);
        command.arg(kernel).args(arguments);
        if !arguments.contains(&"--serial") {
            command.args(["--serial", &format!("file={}", self.path("serial").display())]);
        }
        command
    }

    /// Ends a command without input, in a process group of its own.
    fn finish(&self, command: &mut Command) -> anyhow::Result<Finished> {
        use std::os::unix::process::CommandExt;
        finish(command.current_dir(self.folder.path()).stdin(Stdio::null()).process_group(0), LIMIT)
    }

    /// The command ends with this status and one error that has all of these words in it.
    fn rejects(&self, command: &mut Command, status: i32, words: &[&str]) -> anyhow::Result<()> {
        let before = self.files()?;
        let finished = self.finish(command)?;
        check_rejection(&finished, status, words).with_context(|| format!("{command:?}: {finished:?}"))?;
        ensure!(self.files()? == before, "{command:?} left files behind: {:?}, before: {before:?}", self.files()?);
        Ok(())
    }

    fn files(&self) -> anyhow::Result<BTreeSet<OsString>> {
        std::fs::read_dir(self.folder.path())?.map(|entry| Ok(entry?.file_name())).collect()
    }
}

fn check_rejection(finished: &Finished, status: i32, words: &[&str]) -> anyhow::Result<()> {
    ensure!(finished.status.code() == Some(status), "the exit status should be {status}");
    ensure!(finished.stdout.is_empty(), "standard output should be empty");
    let errors = match status {
        // Of a command line that makes no sense, the usage follows the error.
        2 => finished.stderr.lines().filter(|line| line.starts_with("error: ")).count(),
        _ => {
            ensure!(finished.stderr.starts_with("umbra: "), "the error should say whose it is");
            finished.stderr.lines().count()
        }
    };
    ensure!(errors == 1, "there should be one error");
    for word in words {
        ensure!(finished.stderr.contains(word), "the error should name {word:?}");
    }
    let left = test_kill_process_group(finished.pid);
    ensure!(left == Err(Errno::SRCH), "a process is left");
    Ok(())
}
