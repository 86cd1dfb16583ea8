//! `cargo lab fuzz`: runs a fuzz target of `fuzz/` for some time, on this machine.
//!
//! It builds the target with cargo-fuzz, on the stable toolchain and without a sanitizer, into one folder for all targets.
//! libFuzzer then runs all inputs that there are: those that failed before (`fuzz/crashes`), the committed seeds
//! (`fuzz/seeds`) and what earlier runs found (`fuzz/corpus`); and after them what it makes of them, until the time is
//! over. An input that fails ends the run, is kept in `fuzz/crashes` and fails every later run, until what it found is
//! mended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::options::Options;
use crate::process::Family;
use crate::workspace;

mod fuzzer;

use fuzzer::{Fuzzer, Outcome};

/// Options of `lab fuzz`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
It needs no nightly toolchain, and installs cargo-fuzz if it is not there. The exit status is 0 if
nothing was found, 1 if an input failed, and 2 if the target could not be run. Without a TARGET it
lists all there are.

Examples:
  cargo lab fuzz conversion_request                    for a minute
  cargo lab fuzz conversion_request --seconds 3600     for an hour
  cargo lab fuzz conversion_request --replay FILE      one input again, to see how it fails")]
pub struct Args {
    /// The fuzz target: the name of a file in fuzz/fuzz_targets, without its ending
    target: Option<String>,

    /// For how long
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    seconds: u64,

    /// Run only the input in this file, once
    #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
    replay: Option<PathBuf>,
}

/// A month. libFuzzer counts seconds in 32 bits.
const MOST_SECONDS: u64 = 31 * 24 * 3600;

const FOUND: u8 = 1;
const NOT_RUN: u8 = 2;

/// Runs `lab fuzz`.
pub fn run(args: &Args, options: &Options) -> Result<ExitCode> {
    let outcome = fuzz(args, options).unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        Outcome::NotRun
    });
    Ok(match outcome {
        Outcome::NothingFound => ExitCode::SUCCESS,
        Outcome::Found => ExitCode::from(FOUND),
        Outcome::NotRun => ExitCode::from(NOT_RUN),
    })
}

fn fuzz(args: &Args, options: &Options) -> Result<Outcome> {
    let folder = workspace::root().join("fuzz");
    let target = known_target(&targets(&folder)?, args.target.as_deref())?;
    // Named from where the user is, and looked for before minutes of building.
    let replay = args.replay.as_deref().map(find).transpose()?;
    let fuzzer = Fuzzer { program: build(target)?, target: target.to_owned(), folder, verbose: options.verbose };
    match replay {
        Some(input) => fuzzer.replay(&input),
        None => fuzzer.run(args.seconds),
    }
}

/// The names of all targets.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let file = entry.with_context(|| format!("cannot list {}", folder.display()))?.file_name();
        names.extend(file.to_str().and_then(|name| name.strip_suffix(".rs")).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn known_target<'a>(targets: &[String], asked: Option<&'a str>) -> Result<&'a str> {
    let list = targets.join("\n  ");
    let Some(target) = asked else { bail!("name a fuzz target:\n  {list}") };
    ensure!(targets.iter().any(|name| name == target), "there is no fuzz target {target:?}, but these:\n  {list}");
    Ok(target)
}

fn find(input: &Path) -> Result<PathBuf> {
    ensure!(!input.is_dir(), "{} is a folder: name one input", input.display());
    fs::canonicalize(input).with_context(|| format!("cannot find the input {}", input.display()))
}

/// Builds a target and returns its program.
fn build(target: &str) -> Result<PathBuf> {
    let installed = workspace::cargo().args(["fuzz", "--version"]).output().context("cannot run cargo")?;
    if !installed.status.success() {
        println!("lab: installing cargo-fuzz");
        succeed(workspace::cargo().args(["install", "cargo-fuzz", "--locked"])).context("cannot install cargo-fuzz")?;
    }
    let host = host()?;
    let out = workspace::default_out("fuzz");
    println!("lab: building the fuzz target {target}");
    let mut command = workspace::cargo();
    command.args(["fuzz", "build", "--sanitizer", "none", "--target", &host, "--target-dir"]).arg(&out).arg(target);
    succeed(&mut command).with_context(|| format!("cannot build the fuzz target {target}"))?;
    let program = out.join(host).join("release").join(target);
    ensure!(program.is_file(), "cargo built no {}", program.display());
    Ok(program)
}

/// The platform that this machine's compiler builds for.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").current_dir(workspace::root()).output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// Runs a command that shows its own progress.
fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = Family::start(command, Vec::new())
        .and_then(|mut family| family.wait())
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} failed, as it says above ({status})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_listed_and_built() {
        let folder = workspace::root().join("fuzz");
        let names = targets(&folder).unwrap();
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for name in ["conversion_request", "kernel_image"] {
            assert!(names.iter().any(|other| other == name), "{names:?}");
        }
        for name in names {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        }
    }

    #[test]
    fn an_unknown_target_is_an_error_that_lists_the_known_ones() {
        let targets = ["one".to_owned(), "two".to_owned()];
        assert_eq!(known_target(&targets, Some("two")).unwrap(), "two");
        for asked in [None, Some("three"), Some("on"), Some("../one")] {
            let error = known_target(&targets, asked).unwrap_err().to_string();
            assert!(error.ends_with(":\n  one\n  two"), "{error}");
        }
    }

    #[test]
    fn the_compiler_names_its_platform() {
        assert!(host().unwrap().starts_with("x86_64-"));
    }
}
