//! A child that is waited for no longer than it should take, and killed when it is dropped.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often it is asked whether a child has ended.
const POLL: Duration = Duration::from_millis(5);

/// A child. Its standard error is kept.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a command with pipes at its output.
    ///
    /// # Errors
    /// A program that can't be started.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let stderr_reader = child.stderr.take().map(|mut pipe| {
            let stderr = stderr.clone();
            spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                    stderr.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
                }
            })
        });
        Ok(Self { child, stderr, stderr_reader })
    }

    /// Its process number.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Its standard input, if that is a pipe and nobody has taken it.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output by lines, if nobody has taken it.
    pub fn take_stdout_lines(&mut self) -> Option<Lines> {
        let pipe = self.child.stdout.take()?;
        let (sender, lines) = channel();
        spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while let Ok(1..) = pipe.read_until(b'\n', &mut line) {
                let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                if sender.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Some(Lines(lines))
    }

    /// What it has written to standard error so far; all of it, once it has been waited for.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// A child that is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid(), signal)
            .with_context(|| format!("cannot send {signal:?} to process {}", self.child.id()))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// A child that can't be waited for.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let status = self.child.try_wait().context("cannot wait for a child")?;
        if status.is_some()
            && let Some(reader) = self.stderr_reader.take()
        {
            let _ = reader.join();
        }
        Ok(status)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// A child that goes on until then.
    pub fn wait_before(&mut self, deadline: Instant) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("process {} does not end; its standard error: {:?}", self.child.id(), self.stderr());
            }
            sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that a child writes.
#[derive(Debug)]
pub struct Lines(Receiver<String>);

impl Lines {
    /// The next one; `None` if there is none until then, or there will never be one.
    pub fn next_before(&self, deadline: Instant) -> Option<String> {
        self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// All that come until the child closes its output or the time is over.
    pub fn rest_before(&self, deadline: Instant) -> Vec<String> {
        std::iter::from_fn(|| self.next_before(deadline)).collect()
    }
}

/// A child that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its process number, which may be somebody else's by now.
    pub pid: Pid,
}

/// Runs a command to its end.
///
/// # Errors
/// A program that can't be started, or takes longer than `limit`.
pub fn finish(command: &mut Command, limit: Duration) -> anyhow::Result<Finished> {
    let deadline = Instant::now() + limit;
    let mut running = Running::start(command)?;
    let lines = running.take_stdout_lines().context("there is no output")?;
    let status = running.wait_before(deadline)?;
    let stdout = lines.rest_before(deadline).join("\n");
    Ok(Finished { status, stdout, stderr: running.stderr(), pid: running.pid() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[test]
    fn output_and_status_are_kept() {
        let finished = finish(&mut shell("echo a; echo b; echo c >&2; exit 3"), Duration::from_secs(60)).unwrap();
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("a\nb", "c\n"));
        assert_eq!(finished.status.code(), Some(3));
    }

    #[test]
    fn a_child_that_goes_on_is_an_error_and_killed() {
        let mut child = Running::start(&mut shell("exec sleep 60")).unwrap();
        let pid = child.pid();
        assert!(child.wait_before(Instant::now() + Duration::from_millis(50)).is_err());
        drop(child);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
