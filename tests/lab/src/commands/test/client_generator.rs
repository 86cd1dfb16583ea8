//! What makes clients from the API's document, for tests/kvm: `openapi-python-client` in a Python environment of its own.
//!
//! It comes from PyPI, in the version below; what it needs itself has the versions of the day. The environment lies in the
//! cache (70 MB) and is made anew for another Python. Nothing is installed outside of it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Found, sha256};
use crate::options::Options;
use crate::packages::{Gives, Package, ensure_installed};
use crate::process::Family;

/// The generator.
const GENERATOR: &str = "openapi-python-client";
/// Its version. Other versions name what they generate otherwise.
const VERSION: &str = "0.29.1";
/// What it asks for and does not need: it formats what was generated.
const FORMATTER: &str = "ruff";
/// The most disk that making the environment takes at a time.
const SPACE: u64 = 300_000_000;
/// What makes a Python environment.
const PYTHON: Package = Package { name: "python3-venv", gives: Gives::PythonModule("ensurepip") };
/// Prints what an environment depends on.
const IDENTITY: &str = "import sys; print(sys.base_prefix, sys.version)";

/// The environment's folder, with `bin/python`.
pub fn prepare(options: &Options) -> Result<PathBuf> {
    ensure_installed(options, &[PYTHON])?;
    let cache = Cache::open()?;
    let python = run(Command::new("python3").args(["-c", IDENTITY]))?;
    let entry = Path::new("python").join(format!("{GENERATOR}-{VERSION}_{}", &sha256(&python)[..16]));
    if let Found::Entry(folder) = cache.find(&entry) {
        return Ok(folder);
    }
    let lock = cache.lock("python", "installs what makes clients of the API")?;
    if let Found::Entry(folder) = cache.find(&entry) {
        return Ok(folder);
    }
    cache.require_space(SPACE, &format!("installing {GENERATOR}"))?;
    eprintln!("lab: installing {GENERATOR} {VERSION} from PyPI in the cache");
    let work = cache.work_folder(&lock, "python")?;
    let folder = work.path().join("environment");
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let pip = |arguments: &[&str]| {
        let mut pip = Command::new(folder.join("bin/python"));
        run(pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]).args(arguments))
    };
    pip(&["install", "--no-cache-dir", &format!("{GENERATOR}=={VERSION}")])
        .context("it can't be installed from PyPI: is the network there, and is Python 3.11 or later?")?;
    pip(&["uninstall", "--yes", FORMATTER])?;
    cache.publish(&lock, &folder, &entry)
}

/// Runs a command, which a signal to the lab ends, and returns what it prints.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let words = words.join(std::ffi::OsStr::new(" ")).to_string_lossy().into_owned();
    let context = || format!("cannot run `{words}`");
    let said = tempfile::tempfile().with_context(context)?;
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(said.try_clone()?);
    let mut family = Family::start(command, Vec::new()).with_context(context)?;
    let mut output = Vec::new();
    if let Some(stdout) = &mut family.child().stdout {
        stdout.read_to_end(&mut output).with_context(context)?;
    }
    let status = family.wait().with_context(context)?;
    ensure!(status.success(), "`{words}` failed: {}", last_words(said).with_context(context)?);
    Ok(output)
}

/// The last line of what was written to a file.
fn last_words(mut file: std::fs::File) -> Result<String> {
    use std::io::{Seek, SeekFrom};
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    Ok(last.unwrap_or("it does not say why").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_prints_is_returned_and_its_last_words_are_the_reason_of_a_failure() {
        let shell = |script: &str| run(Command::new("sh").args(["-c", script]));
        assert_eq!(shell("echo a; echo b >&2").unwrap(), b"a\n");
        let error = shell("echo first >&2; echo the reason >&2; echo >&2; exit 1").unwrap_err().to_string();
        assert!(error.ends_with("failed: the reason"), "{error}");
        assert!(shell("exit 1").unwrap_err().to_string().ends_with("it does not say why"));
        assert!(run(&mut Command::new("/nonexistent/program")).unwrap_err().to_string().contains("/nonexistent"));
    }
}
