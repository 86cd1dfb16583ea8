//! `cargo lab test`: the workspace's tests on this machine, then those of the package kvm-tests on real KVM.
//!
//! Each test program of kvm-tests gets a nested host of its own, so none disturbs another.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::machine::{Job, Machine, Terminal};
use crate::options::Options;
use crate::process::Family;
use crate::workspace;

mod artifacts;
mod client_generator;
mod guest;
mod tally;

use artifacts::Artifact;
use tally::Tally;

/// Options of `lab test`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The last lines say how many tests ran where. The exit status is 1 if a test failed, or if no test at all ran inside.

Examples:
  cargo lab test                       all tests
  cargo lab test conversion            those with \"conversion\" in their name
  cargo lab test --inside              only those on real KVM
  cargo lab test --release             optimised: longer to build, faster inside")]
pub struct Args {
    /// Run only tests whose name contains this
    filter: Option<String>,

    /// Run only the tests on real KVM
    #[arg(long)]
    inside: bool,

    /// Build with optimisations
    #[arg(long)]
    release: bool,
}

/// The package with the tests on real KVM.
const KVM_TESTS: &str = "kvm-tests";
/// How long one test program may take inside.
const PROGRAM_LIMIT: Duration = Duration::from_secs(1200);

/// Runs `lab test`.
pub fn run(args: &Args, options: &Options) -> Result<ExitCode> {
    // Made ready first: some tests of the lab itself need it, and a failure here should not wait for them.
    let machine = Machine::prepare(options)?;
    let outside = if args.inside { Tally::default() } else { run_outside(args)? };
    let inside = run_inside(args, options, &machine)?;
    println!("\noutside: {outside}\ninside: {inside}\n{}", outside + inside);
    let nothing_ran = inside.passed + inside.failed == 0 && args.filter.is_none();
    if nothing_ran {
        eprintln!("lab: no test ran inside, although there was no filter");
    }
    Ok(if outside.failed + inside.failed > 0 || nothing_ran { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn cargo(subcommand: &str, args: &Args) -> Command {
    let mut cargo = workspace::cargo();
    cargo.arg(subcommand).stdin(Stdio::null());
    if args.release {
        cargo.arg("--release");
    }
    cargo
}

fn run_outside(args: &Args) -> Result<Tally> {
    println!("lab: tests on this machine");
    let mut cargo = cargo("test", args);
    cargo.args(["--workspace", "--exclude", KVM_TESTS, "--no-fail-fast"]);
    if let Some(filter) = &args.filter {
        cargo.arg("--").arg(filter);
    }
    let mut tally = Tally::default();
    let succeeded = for_each_line(&mut cargo, |line| {
        let mut output = std::io::stdout().lock();
        output.write_all(line)?;
        output.flush()?;
        tally.read_line(&String::from_utf8_lossy(line));
        Ok(())
    })?;
    if !succeeded && tally.failed == 0 {
        eprintln!("lab: cargo test failed without a failed test: this counts as one");
        tally.failed += 1;
    }
    Ok(tally)
}

fn run_inside(args: &Args, options: &Options, machine: &Machine) -> Result<Tally> {
    let programs =
        build(cargo("test", args).args(["--no-run", "-p", KVM_TESTS])).context("cannot build the tests on real KVM")?;
    let programs: Vec<Artifact> = programs.into_iter().filter(|program| program.is_test).collect();
    ensure!(!programs.is_empty(), "the package {KVM_TESTS} has no tests");
    let umbra = build(cargo("build", args).args(["-p", "umbra"])).context("cannot build umbra")?;
    let umbra = umbra
        .into_iter()
        .find(|program| program.name == "umbra" && !program.is_test)
        .context("cargo built no umbra")?;
    let guest = guest::prepare(options).context("cannot make a guest for the tests")?;
    let generator =
        client_generator::prepare(options).context("cannot make ready what makes clients of the API for the tests")?;
    let env = [("UMBRA_BIN", umbra.path), ("UMBRA_GUEST", guest), ("UMBRA_CLIENT_GENERATOR", generator)];

    let mut tally = Tally::default();
    for program in programs {
        println!("\nlab: tests on real KVM: {}", program.name);
        tally = tally
            + run_program(&program, &env, args, options, machine).unwrap_or_else(|error| {
                eprintln!("lab: {error:#}\nlab: {} did not run to its end: this counts as a failed test", program.name);
                Tally { failed: 1, ..Tally::default() }
            });
    }
    Ok(tally)
}

fn run_program(
    program: &Artifact,
    env: &[(&str, PathBuf)],
    args: &Args,
    options: &Options,
    machine: &Machine,
) -> Result<Tally> {
    // The names of tests and their results, kept on the way to the terminal.
    let out = workspace::default_out("test");
    let record = out.join(format!("{}.log", program.name));
    let mut argv =
        vec!["sh".into(), "-c".into(), SHOW_AND_RECORD.into(), record.clone().into(), program.path.clone().into()];
    argv.extend(args.filter.iter().map(Into::into));
    if BOOTS_LINUX.contains(&&*program.name) {
        argv.extend(["--test-threads=1".into()]);
    }
    let env = env.iter().map(|(name, value)| ((*name).into(), value.into()));
    let job = Job {
        argv,
        env: env.chain([("CARGO_MANIFEST_DIR".into(), program.package.clone().into())]).collect(),
        out,
        time_limit: options.time_limit(PROGRAM_LIMIT),
        terminal: Terminal::Stream,
    };
    if record.exists() {
        std::fs::remove_file(&record).with_context(|| format!("cannot remove {}", record.display()))?;
    }
    let status = machine.run(&job)?;
    let text = std::fs::read(&record).unwrap_or_default();
    let mut tally = Tally::default();
    for line in String::from_utf8_lossy(&text).lines() {
        tally.read_line(line);
    }
    if status != 0 && tally.failed == 0 {
        eprintln!("lab: {} ended with status {status} without a failed test: this counts as one", program.name);
        tally.failed += 1;
    }
    Ok(tally)
}

/// Programs whose guests are whole systems. Two of these at once would be too slow for each other, so they run one after the
/// other.
const BOOTS_LINUX: [&str; 3] = ["client", "devices", "several_processors"];

/// Runs "$1" with the arguments after it in its package's folder, as cargo does, copies its output to the file "$0", and
/// ends as it did.
const SHOW_AND_RECORD: &str = r#"cd "$CARGO_MANIFEST_DIR" && rm -f "$0.status"
{ "$@"; echo $? >"$0.status"; } | tee "$0"
exit "$(cat "$0.status")""#;

/// Builds with cargo and returns the programs that came of it.
pub(super) fn build(cargo: &mut Command) -> Result<Vec<Artifact>> {
    cargo.arg("--message-format=json-render-diagnostics");
    let mut programs = Vec::new();
    let succeeded = for_each_line(cargo, |line| {
        programs.extend(artifacts::executable(line));
        Ok(())
    })?;
    ensure!(succeeded, "cargo failed, as it says above");
    Ok(programs)
}

/// Runs a command, hands over each line of its output, and returns whether it succeeded.
fn for_each_line(command: &mut Command, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut family =
        Family::start(command.stdout(Stdio::piped()), Vec::new()).with_context(|| format!("cannot run {program}"))?;
    let Some(output) = family.child().stdout.take() else { bail!("{program} has no output") };
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).with_context(|| format!("cannot read what {program} prints"))? > 0 {
        take(&line).with_context(|| format!("cannot pass on what {program} prints"))?;
        line.clear();
    }
    Ok(family.wait().with_context(|| format!("cannot wait for {program}"))?.success())
}
