//! Which QEMU emulates nested hosts: the installed one, or a newer one beside it.
//!
//! Before 10.2, QEMU's emulation of AMD's virtualisation set and cleared what a processor is asked for without atomic
//! operations while other threads did the same. With a thread for each processor, that loses interrupts of nested KVM: a
//! processor goes silent, or a guest or the nested host crashes (docs/lab.md). So where the installed one is older, the lab
//! takes a newer one of Debian into its cache, with all its libraries, installs nothing, and runs that. Where it can't have
//! that, it goes on with what is installed, and says so.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::options::Options;
use crate::packages::{self, Gives, Package, Root};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The package that has it.
const PACKAGE: Package = Package { name: "qemu-system-x86", gives: Gives::Command(PROGRAM) };
/// What the newer one has besides: the same program under other names, each as large.
const OTHER_NAMES: [&str; 2] = ["./usr/bin/qemu-system-i386", "./usr/bin/qemu-system-x86_64-microvm"];
/// The first version whose TCG runs the nested KVM.
const OLDEST: Version = (7, 2);
/// The first version that loses no interrupts.
const STEADY: Version = (10, 2);

type Version = (u32, u32);

/// A QEMU.
#[derive(Debug)]
pub enum Emulator {
    /// A program of this system: of this path, or found by this name.
    Installed(PathBuf),
    /// One with its own libraries and firmware.
    Newer(Root),
}

impl Emulator {
    /// The one that is found in the path, whatever its version.
    pub(super) fn installed() -> Self {
        Self::Installed(PROGRAM.into())
    }

    /// Makes sure that there is one.
    ///
    /// # Errors
    /// None that is new enough for nested KVM, and nothing that can be done about it.
    pub fn prepare(options: &Options, cache: &Cache) -> Result<Self> {
        packages::ensure_installed(options, &[PACKAGE]).context("cannot start a nested host")?;
        let installed = Self::installed();
        let version = installed.version()?;
        if version >= STEADY {
            return Ok(installed);
        }
        let reason = match newer(options, cache) {
            Ok(Some(newer)) => return Ok(newer),
            Ok(None) => "apt's lists have no Debian to take a newer one from".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let (major, minor) = version;
        ensure!(
            version >= OLDEST,
            "{PROGRAM} is version {major}.{minor}, and the lab needs {}.{} or later ({reason})",
            OLDEST.0,
            OLDEST.1
        );
        eprintln!(
            "lab: going on with {PROGRAM} {major}.{minor}, which loses interrupts now and then, so that guests and \
             nested hosts may crash or stand still: {reason}"
        );
        Ok(installed)
    }

    /// Whether [`Self::prepare`] would find everything here.
    pub fn is_ready(cache: &Cache) -> bool {
        packages::missing(&[PACKAGE]).is_empty()
            && (Self::installed().version().is_ok_and(|version| version >= STEADY)
                || packages::has_newer(cache, PACKAGE.name))
    }

    /// Starts to describe a run of it.
    pub fn command(&self) -> Command {
        match self {
            Self::Installed(program) => Command::new(program),
            Self::Newer(root) => {
                let mut command = root.command(PROGRAM);
                for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.path(firmware));
                }
                command.env("QEMU_MODULE_DIR", root.path("usr/lib/x86_64-linux-gnu/qemu"));
                command
            }
        }
    }

    fn version(&self) -> Result<Version> {
        let context = || match self {
            Self::Installed(program) => format!("cannot run {}", program.display()),
            Self::Newer(root) => format!("cannot run {PROGRAM} in {}", root.path("").display()),
        };
        let output = self.command().arg("--version").output().with_context(context)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", context(), said.lines().next().unwrap_or("it gave no reason"));
        let text = String::from_utf8_lossy(&output.stdout);
        version(&text).with_context(|| format!("{PROGRAM} --version does not tell a version"))
    }
}

/// A newer one that runs here, if apt knows a Debian.
fn newer(options: &Options, cache: &Cache) -> Result<Option<Emulator>> {
    let root = packages::fetch_newer(options, cache, PACKAGE.name, STEADY, &OTHER_NAMES)?;
    let newer = root.map(Emulator::Newer);
    newer.as_ref().map(Emulator::version).transpose()?;
    Ok(newer)
}

fn version(text: &str) -> Option<Version> {
    packages::upstream(text.split_once("version ")?.1.split_whitespace().next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2\nCopyright"), Some((10, 0)));
        assert_eq!(version("something else"), None);
        assert!((11, 1) >= STEADY && (10, 0) < STEADY && (6, 9) < OLDEST);
    }

    #[test]
    fn a_program_that_does_not_run_says_why() {
        let missing = Emulator::Installed("/nonexistent/qemu".into());
        assert!(format!("{:#}", missing.version().unwrap_err()).starts_with("cannot run /nonexistent/qemu: "));
        let fails = Emulator::Installed("false".into());
        assert_eq!(format!("{:#}", fails.version().unwrap_err()), "cannot run false: it gave no reason");
    }
}
