//! Which QEMU emulates nested hosts: the installed one, or a newer one beside it.
//!
//! QEMU 7.2, which Debian 12 has, runs nested KVM with a thread for each processor, and then corrupts something now and then:
//! the nested host's kernel crashes, or a guest shuts down for no reason of its own, about once in twenty machines of two
//! processors at work. With 10.0 it was once in hundreds. So where the installed one is older than [`STEADY`], the
//! lab takes the one of Debian's backports into its cache, installs nothing, and runs that. Its libraries are those of the
//! installed one. Where there are no such backports, the lab goes on with what is installed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::options::Options;
use crate::packages::{self, Gives, Package};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The package that has it.
const PACKAGE: Package = Package { name: "qemu-system-x86", gives: Gives::Command(PROGRAM) };
/// The packages of a newer one: the program, and the firmware that is made for it.
const NEWER: [&str; 2] = ["qemu-system-x86", "qemu-system-data"];
/// The first version whose TCG runs the nested KVM.
const OLDEST: Version = (7, 2);
/// The first version that was seen to run it with few faults of its own.
const STEADY: Version = (10, 0);
/// The first version without the fault that is known (docs/lab.md).
const UNKNOWN_FAULTS_ONLY: Version = (8, 1);

type Version = (u32, u32);

/// A QEMU that was seen to run.
#[derive(Debug)]
pub struct Emulator {
    program: PathBuf,
    /// Where it looks for firmware first.
    firmware: Option<PathBuf>,
}

impl Emulator {
    /// The one that is found in the path, whatever its version.
    pub(super) fn installed() -> Self {
        Self { program: PROGRAM.into(), firmware: None }
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
        match newer(options, cache) {
            Ok(Some(newer)) => return Ok(newer),
            Ok(None) if version >= UNKNOWN_FAULTS_ONLY => {}
            Ok(None) => {
                eprintln!("lab: {} {}.{} is old; nested hosts may crash now and then", PROGRAM, version.0, version.1)
            }
            Err(error) => eprintln!(
                "lab: going on with {PROGRAM} {}.{}, with which nested hosts may crash now and then: {error:#}",
                version.0, version.1
            ),
        }
        ensure!(
            version >= OLDEST,
            "{PROGRAM} is version {}.{}, and the lab needs {}.{} or later",
            version.0,
            version.1,
            OLDEST.0,
            OLDEST.1
        );
        Ok(installed)
    }

    /// Whether [`Self::prepare`] would find everything here.
    pub fn is_ready(cache: &Cache) -> bool {
        let installed = Self::installed();
        packages::missing(&[PACKAGE]).is_empty()
            && (installed.version().is_ok_and(|version| version >= STEADY) || packages::has_backports(cache, NEWER[0]))
    }

    /// Starts to describe a run of it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(folder) = &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
    }

    fn version(&self) -> Result<Version> {
        let context = || format!("cannot run {}", self.program.display());
        let output = self.command().arg("--version").output().with_context(context)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", context(), said.lines().next().unwrap_or("it gave no reason"));
        let text = String::from_utf8_lossy(&output.stdout);
        version(&text).with_context(|| format!("{} --version does not tell a version", self.program.display()))
    }
}

/// The one of Debian's backports, if this is a Debian whose backports have one that is steady.
fn newer(options: &Options, cache: &Cache) -> Result<Option<Emulator>> {
    let Some(folder) = packages::fetch_backports(options, cache, &NEWER)? else { return Ok(None) };
    let newer =
        Emulator { program: folder.join("usr/bin").join(PROGRAM), firmware: Some(folder.join("usr/share/qemu")) };
    let version = newer.version()?;
    Ok((version >= STEADY).then_some(newer))
}

fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split_once("version ")?.1.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2\nCopyright"), Some((10, 0)));
        assert_eq!(version("something else"), None);
        assert!((10, 0) >= OLDEST && (6, 9) < OLDEST);
    }

    #[test]
    fn a_program_that_does_not_run_says_why() {
        let missing = Emulator { program: "/nonexistent/qemu".into(), firmware: None };
        assert!(format!("{:#}", missing.version().unwrap_err()).starts_with("cannot run /nonexistent/qemu: "));
        let fails = Emulator { program: "false".into(), firmware: None };
        assert_eq!(format!("{:#}", fails.version().unwrap_err()), "cannot run false: it gave no reason");
    }

    #[test]
    fn one_beside_the_installed_looks_for_its_own_firmware() {
        let beside = Emulator { program: "/c/usr/bin/q".into(), firmware: Some("/c/usr/share/qemu".into()) };
        let command = beside.command();
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["-L", "/c/usr/share/qemu"]);
    }
}
