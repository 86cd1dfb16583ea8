//! Debian packages: what must be installed on this machine, and what is only fetched and unpacked into the cache.
//!
//! Installing needs root. As root the lab installs what is missing and says so; else it asks before it uses sudo, and
//! `--yes` answers. Fetching needs no root and changes nothing outside the cache.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::options::Options;
use crate::process::start_in_foreground;

mod apt;
mod listing;
mod mirror;
mod newer;

use apt::Refreshed;
pub use apt::{
    Candidate, candidate, download, fetch_deb, is_cached, last_candidate, newest_matching, resolve_meta, unpack,
};
pub use listing::upstream;
pub use mirror::debian_mirror;
pub use newer::{Root, fetch_newer, has_newer};

/// A package that this machine needs installed.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Its name in Debian and Ubuntu.
    pub name: &'static str,
    /// What is there once it is installed.
    pub gives: Gives,
}

/// What tells that a package is installed, on any distribution.
#[derive(Clone, Copy, Debug)]
pub enum Gives {
    /// A command in the path.
    Command(&'static str),
    /// A file.
    File(&'static str),
    /// A module of the `python3` in the path.
    PythonModule(&'static str),
}

impl Package {
    fn installed(&self) -> bool {
        match self.gives {
            Gives::Command(command) => find_command(command),
            Gives::File(path) => Path::new(path).exists(),
            Gives::PythonModule(module) => {
                let import = format!("import {module}");
                run("python3", ["-c", import.as_str()]).is_ok_and(|output| output.status.success())
            }
        }
    }

    fn description(&self) -> String {
        match self.gives {
            Gives::Command(command) => format!("{} (for the command {command})", self.name),
            Gives::File(path) => format!("{} (for {path})", self.name),
            Gives::PythonModule(module) => format!("{} (for Python's module {module})", self.name),
        }
    }
}

fn find_command(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Those of `packages` that are not installed.
pub fn missing(packages: &[Package]) -> Vec<Package> {
    packages.iter().copied().filter(|package| !package.installed()).collect()
}

/// Makes sure that `packages` are installed: installs what is missing, or fails with the names and the command.
pub fn ensure_installed(options: &Options, packages: &[Package]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let descriptions: Vec<String> = missing.iter().map(Package::description).collect();
    let descriptions = descriptions.join(", ");
    ensure!(
        find_command("apt-get"),
        "these packages are needed, under their names in Debian: {descriptions}; the lab installs packages on Debian and \
         Ubuntu only, so please install what provides them here"
    );
    let mut names: Vec<String> = missing.iter().map(|package| package.name.to_owned()).collect();
    let removed = plan(options, &mut names)?;
    let command = format!("apt-get install {}", names.join(" "));
    let mut reason = format!("packages are missing: {descriptions}");
    if !removed.is_empty() {
        reason.push_str(&format!("; installing them removes {}", removed.join(", ")));
    }
    let consented = Administrator::obtain(options, &reason, &command)?;
    if !removed.is_empty() && !consented.asked && !options.yes {
        bail!("{reason}, so please run `{command}` yourself, or pass --yes");
    }
    eprintln!("lab: installing {}", names.join(", "));
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(names.iter().map(String::as_str));
    let context = || format!("cannot install {}", names.join(", "));
    match consented.apt_get(options, &arguments) {
        // Servers drop old versions, which apt's lists may still name.
        Err(error) if error.to_string().contains(listing::NOT_THERE) && apt::refresh(options)?.is_some() => {
            consented.apt_get(options, &arguments).with_context(context)?
        }
        result => result.with_context(context)?,
    };
    let still: Vec<String> = self::missing(packages).iter().map(Package::description).collect();
    ensure!(still.is_empty(), "apt-get installed {} but this is still missing: {}", names.join(", "), still.join(", "));
    Ok(())
}

/// Asks apt what installing `names` would remove. What an upgrade would keep is added to `names` for that.
fn plan(options: &Options, names: &mut Vec<String>) -> Result<Vec<String>> {
    for _ in 0..3 {
        let output = run(
            "apt-get",
            ["-s", "install", "--no-install-recommends"].into_iter().chain(names.iter().map(String::as_str)),
        )?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match apt::refresh(options)? {
                Some(Refreshed::Well) => continue,
                Some(Refreshed::Poorly(complaint)) => bail!("cannot update apt's lists of packages: {complaint}"),
                None => bail!("apt-get cannot install {}: {}", names.join(", "), listing::complaint(&said)),
            }
        }
        let removed = listing::removed(&String::from_utf8_lossy(&output.stdout));
        let unnamed: Vec<String> = removed.iter().filter(|name| !names.contains(name)).cloned().collect();
        if unnamed.is_empty() {
            return Ok(removed);
        }
        // apt removes a package that is too old to stay beside the new ones, unless it is told to upgrade it.
        let trial: Vec<&str> = names.iter().chain(&unnamed).map(String::as_str).collect();
        let output = run("apt-get", ["-s", "install", "--no-install-recommends"].into_iter().chain(trial))?;
        if !output.status.success() || !listing::removed(&String::from_utf8_lossy(&output.stdout)).is_empty() {
            return Ok(removed);
        }
        names.extend(unnamed);
    }
    Ok(Vec::new())
}

/// The right to change this machine.
#[derive(Debug)]
pub struct Administrator {
    sudo: bool,
    asked: bool,
}

impl Administrator {
    /// Root may; others need sudo and a yes. `reason` and `command` go into the question and the refusal.
    pub fn obtain(options: &Options, reason: &str, command: &str) -> Result<Self> {
        if rustix::process::geteuid().is_root() {
            return Ok(Self { sudo: false, asked: false });
        }
        ensure!(find_command("sudo"), "{reason}; there is no sudo here, so please run as root: {command}");
        if options.yes {
            return Ok(Self { sudo: true, asked: false });
        }
        ensure!(
            std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
            "{reason}; please run `sudo {command}`, or pass --yes and the lab runs it"
        );
        eprint!("lab: {reason}\nlab: may it run `sudo {command}`? [y/N] ");
        std::io::stderr().flush().context("cannot ask")?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
        ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "{reason}; nothing was changed");
        Ok(Self { sudo: true, asked: true })
    }

    /// `program` with that right. It asks nothing: what sudo asks, it asks here.
    pub fn command(&self, program: &str) -> Result<Command> {
        if !self.sudo {
            return Ok(Command::new(program));
        }
        let asked = start_in_foreground(Command::new("sudo").arg("-v")).and_then(|mut child| child.wait());
        ensure!(asked.context("cannot run sudo")?.success(), "sudo did not allow it");
        let mut command = Command::new("sudo");
        command.args(["-n", program]);
        Ok(command)
    }

    /// Runs apt-get with the right to change this machine, and returns what it said on standard error. With --verbose,
    /// its words are shown instead.
    fn apt_get(&self, options: &Options, arguments: &[&str]) -> Result<String> {
        // Another package manager at work (upgrades at boot, another run of the lab) is waited for.
        let all = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"];
        let mut command = Command::new(if self.sudo { "sudo" } else { "env" });
        command.args(all).args(arguments).env("LC_ALL", "C").stdin(Stdio::inherit());
        if !options.verbose {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let output = start_in_foreground(&mut command)
            .and_then(|child| child.wait_with_output())
            .context("cannot run apt-get")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "apt-get {} failed: {}", arguments[0], listing::complaint(&said));
        Ok(said)
    }
}

/// Runs a program that changes nothing, in plain English, and waits.
fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<Output> {
    Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_missing() {
        let here = Package { name: "dash", gives: Gives::Command("sh") };
        let gone = Package { name: "nothing", gives: Gives::File("/nonexistent/file") };
        let missing = missing(&[here, gone]);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].description(), "nothing (for /nonexistent/file)");
    }
}
