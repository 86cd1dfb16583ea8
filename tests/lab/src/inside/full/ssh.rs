//! Logs in to the guest with ssh, and runs scripts there.
//!
//! The client is this machine's own. The first login opens a connection that later commands share, so that only the first
//! pays for the key exchange, which takes seconds in an emulated machine.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::network::GUEST;
use crate::inside::watch::Watch;
use crate::process::Family;

/// How often a login is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// How to log in.
#[derive(Debug)]
pub struct Ssh {
    options: Vec<OsString>,
    watch: Watch,
}

impl Ssh {
    /// With this private key, to the guest whose host key stands in `known_hosts`. `sockets` is a folder with a short name.
    /// Nobody waits for a guest that `watch` knows to be another one.
    pub fn new(key: &Path, known_hosts: &Path, sockets: &Path, watch: Watch) -> Self {
        let with = |name: &str, path: PathBuf| {
            let mut text = OsString::from(name);
            text.push("=");
            text.push(path);
            text
        };
        let mut options: Vec<OsString> = vec!["-F".into(), "none".into(), "-i".into(), key.into()];
        for option in [
            with("UserKnownHostsFile", known_hosts.into()),
            with("ControlPath", sockets.join("ssh")),
            "StrictHostKeyChecking=yes".into(),
            "IdentitiesOnly=yes".into(),
            "BatchMode=yes".into(),
            "LogLevel=ERROR".into(),
            "ConnectTimeout=60".into(),
            "ControlMaster=auto".into(),
            "ControlPersist=yes".into(),
        ] {
            options.extend(["-o".into(), option]);
        }
        Self { options, watch }
    }

    /// `ssh ... root@guest COMMAND`
    pub fn command(&self, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(&self.options).arg(format!("root@{GUEST}")).arg(command);
        ssh
    }

    /// Opens the connection, as soon as the guest lets it in.
    pub fn log_in(&self, limit: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            // The process that keeps the connection must not keep a pipe of ours open.
            let mut command = self.command("true");
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let errors = tempfile::tempfile().context("cannot make a temporary file")?;
            command.stderr(errors.try_clone().context("cannot duplicate a descriptor")?);
            let status = command.status().context("cannot run ssh")?;
            if status.success() {
                return Ok(());
            }
            alive()?;
            if Instant::now() >= deadline {
                bail!("no login within {} s: {}", limit.as_secs(), text_of(errors).trim());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Runs a shell script with these arguments in the guest, and returns what it says. It fails if the script does.
    pub fn run(&self, script: &str, arguments: &[&str], limit: Duration) -> Result<String> {
        let (input, mut writer) = std::io::pipe().context("cannot make a pipe")?;
        let output = tempfile::tempfile().context("cannot make a temporary file")?;
        let errors = tempfile::tempfile().context("cannot make a temporary file")?;
        let mut command = self.command(&invocation(arguments)?);
        command.stdin(input);
        command.stdout(output.try_clone().context("cannot duplicate a descriptor")?);
        command.stderr(errors.try_clone().context("cannot duplicate a descriptor")?);
        let mut ssh = Family::start(&mut command, Vec::new()).context("cannot run ssh")?;
        drop(command); // with it goes our copy of the reading end
        // Scripts are shorter than what a pipe holds.
        writer.write_all(script.as_bytes()).context("cannot give ssh a script")?;
        drop(writer);
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = ssh.try_wait().context("cannot wait for ssh")? {
                break status;
            }
            ensure!(Instant::now() < deadline, "a script in the guest took longer than {} s", limit.as_secs());
            self.watch.check()?;
            std::thread::sleep(Duration::from_millis(20));
        };
        let (said, complaint) = (text_of(output), text_of(errors));
        ensure!(status.success(), "a script in the guest failed ({status}): {}", complaint.trim());
        Ok(said)
    }

    /// Starts a script that runs until the returned process is dropped.
    pub fn start(&self, script: &str, arguments: &[&str]) -> Result<Family> {
        let (input, mut writer) = std::io::pipe().context("cannot make a pipe")?;
        let mut command = self.command(&invocation(arguments)?);
        command.stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
        let family = Family::start(&mut command, Vec::new()).context("cannot run ssh")?;
        writer.write_all(script.as_bytes()).context("cannot give ssh a script")?;
        Ok(family)
    }
}

impl Drop for Ssh {
    /// Ends the process that keeps the connection.
    fn drop(&mut self) {
        let mut command = Command::new("ssh");
        command.args(&self.options).args(["-O", "exit"]).arg(format!("root@{GUEST}"));
        // Without a connection there is nothing to end.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// What the guest's login shell is told: bash reads the script from its input.
fn invocation(arguments: &[&str]) -> Result<String> {
    let plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte));
    ensure!(arguments.iter().all(plain), "an argument for the guest would need quotes");
    Ok(format!("exec bash -s -- {}", arguments.join(" ")))
}

fn text_of(mut file: std::fs::File) -> String {
    let mut text = Vec::new();
    let read = std::io::Seek::rewind(&mut file).and_then(|()| std::io::Read::read_to_end(&mut file, &mut text));
    // Text for people: without it, a message says less.
    if read.is_err() { String::new() } else { String::from_utf8_lossy(&text).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inside::events::EventFile;

    #[test]
    fn only_plain_words_go_to_the_guest() {
        assert_eq!(invocation(&["/srv/data", "256"]).unwrap(), "exec bash -s -- /srv/data 256");
        for bad in ["a b", "$(x)", "a;b", "'"] {
            assert!(invocation(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_hosts_are_refused_and_no_password_is_asked_for() {
        let watch = Watch::new(EventFile::create("/nonexistent/events".into()).unwrap());
        let ssh = Ssh::new(Path::new("/k"), Path::new("/known"), Path::new("/s"), watch);
        let command = ssh.command("true");
        let arguments: Vec<_> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        for needed in ["StrictHostKeyChecking=yes", "BatchMode=yes", "UserKnownHostsFile=/known", "ControlPath=/s/ssh"]
        {
            assert!(arguments.contains(&needed), "{needed}");
        }
    }
}
