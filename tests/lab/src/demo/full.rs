//! `cargo lab demo --full`: a Debian system in unmappable memory, with disks, network and an operator.
//!
//! Out here: make or find the system's image ([`crate::debian`]), make this run's keys and the initramfs that carries them,
//! start the nested host once, judge the figures and print them. Inside: [`crate::inside::full`].

pub mod figures;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{DEFAULT_FULL_MEMORY, JsonFile, Kernel, fetch_busybox, umbra};
use crate::cache::Cache;
use crate::commands::exit_code;
use crate::debian::keys::Keys;
use crate::debian::{self, initramfs};
use crate::inside::full::{FIGURES, LIMIT, network};
use crate::inside::io::TIMES;
use crate::interrupt::on_interrupt;
use crate::machine::{Job, Machine, Terminal};
use crate::options::Options;

use figures::FullOutcome;

/// Runs the full demonstration with so much guest RAM. The exit status is 0 only if it shows what it should.
pub(super) fn run(
    kernel_package: Option<&str>,
    memory: &str,
    json: Option<&JsonFile>,
    options: &Options,
) -> Result<ExitCode> {
    let outcome = match measure(kernel_package, memory, options)? {
        Ok(outcome) => outcome,
        Err(status) => return Ok(exit_code(status)),
    };
    if let Some(json) = json {
        json.write(&outcome.summary())?;
    }
    if options.verbose {
        eprint!("{}", outcome.demo.details());
    }
    let shortcomings = outcome.shortcomings();
    println!("\n{outcome}");
    if shortcomings.is_empty() {
        println!("{}", outcome.demo.verdict());
        return Ok(ExitCode::SUCCESS);
    }
    bail!("the demonstration failed: {}", shortcomings.join("; "))
}

/// Runs it for its figures, which go to a file as JSON; fails if it does not show what it should.
pub fn record(path: &Path, options: &Options) -> Result<()> {
    let outcome = measure(None, DEFAULT_FULL_MEMORY, options)?;
    let outcome = outcome.map_err(|status| anyhow!("the full demonstration failed: exit status {status}"))?;
    let shortcomings = outcome.shortcomings();
    ensure!(shortcomings.is_empty(), "the full demonstration failed: {}", shortcomings.join("; "));
    let text = serde_json::to_vec_pretty(&outcome.summary())?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Has the guest's devices timed instead, so often; the times go to a file as JSON.
pub fn record_io(path: &Path, rounds: u32, options: &Options) -> Result<()> {
    let rounds = ["--rounds".into(), rounds.to_string().into()];
    // Three guests live at the same time.
    let result = inside("io", &rounds, TIMES, None, "512M", options)?;
    let times = result.map_err(|status| anyhow!("the guests of the nested host failed: exit status {status}"))?;
    fs::write(path, times).with_context(|| format!("cannot write {}", path.display()))
}

/// Runs it. The inner error is the exit status of a nested host that did not finish.
fn measure(kernel_package: Option<&str>, memory: &str, options: &Options) -> Result<Result<FullOutcome, i32>> {
    let figures = match inside("full", &[], FIGURES, kernel_package, memory, options)? {
        Ok(figures) => figures,
        Err(status) => return Ok(Err(status)),
    };
    let outcome = serde_json::from_slice(&figures).context("the nested host's figures are not as expected")?;
    Ok(Ok(outcome))
}

/// Makes everything ready, runs a command of [`crate::inside`], and returns the content of the file that it leaves.
fn inside(
    command: &str,
    options_of_command: &[OsString],
    leaves: &str,
    kernel_package: Option<&str>,
    memory: &str,
    options: &Options,
) -> Result<Result<Vec<u8>, i32>> {
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = temporary.path().to_owned();
    let _cleanup = on_interrupt(move || drop(fs::remove_dir_all(folder)));
    let out = temporary.path();
    let machine = Machine::prepare(options)?;
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(kernel_package, options, &cache)?;
    let busybox = fetch_busybox(options, &cache)?;
    let system = debian::prepare(options, &cache, &kernel.package)?;
    let umbra = umbra::build(options)?;
    let keys = Keys::make(out)?;
    let known_hosts = out.join("known-hosts");
    keys.write_known_hosts(network::GUEST, &known_hosts)?;
    let initramfs = out.join("initramfs");
    fs::write(&initramfs, initramfs::build(&busybox, &system, &keys)?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;

    let lab = std::env::current_exe().context("cannot find the lab's own program")?;
    let mut argv: Vec<OsString> = vec![lab.into(), "inside".into(), command.into()];
    let mut option = |name: &str, value: OsString| argv.extend([name.into(), value]);
    option("--umbra", umbra.into());
    option("--kernel", kernel.image.into());
    option("--kernel-name", kernel.release.into());
    option("--system-name", system.name.into());
    option("--image", system.image.into());
    option("--initramfs", initramfs.into());
    option("--memory", memory.into());
    option("--folder", out.into());
    option("--key", keys.login().into());
    option("--known-hosts", known_hosts.into());
    argv.extend_from_slice(options_of_command);
    if options.verbose {
        argv.push("--show-console".into());
    }
    let job = Job {
        argv,
        env: Vec::new(),
        out: out.to_owned(),
        time_limit: options.time_limit(LIMIT),
        terminal: Terminal::Stream,
    };
    let status = machine.run(&job)?;
    if status != 0 {
        return Ok(Err(status));
    }
    let left = out.join(leaves);
    Ok(Ok(fs::read(&left).with_context(|| format!("the nested host left no {}", left.display()))?))
}
