//! `cargo lab bench`: what the memory core costs, beside what others do without it.
//!
//! The package bench measures and prints. What needs no guest runs on this machine, conversions and boots run inside; the
//! footprint is what the full demonstration measures.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value};

use super::test::build;
use crate::demo;
use crate::machine::{Job, Machine, Terminal};
use crate::options::Options;
use crate::process::Family;
use crate::workspace;

/// Options of `lab bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each figure comes with the middle half of its measurements and, where it has one, its target. A
target that is missed does not fail the command. Ratios are to what others do, in the same process
and in turns with it, so that other programs on the machine meet both; but a quiet machine measures
best. docs/performance.md explains all figures.

Examples:
  cargo lab bench                      all of them, some minutes
  cargo lab bench access map           only what needs no nested host
  cargo lab bench boot --rounds 3      only boots, beside QEMU, and only some
  cargo lab bench --json figures.json  also write the medians, for programs")]
pub struct Args {
    /// Which benchmarks [default: all]
    #[arg(value_enum, value_name = "NAME")]
    benchmarks: Vec<Benchmark>,

    /// How often guests boot and make their transfers: fewer is faster, and says less
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Write the medians to this file, as nested objects
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// Devices' accesses to guest memory, on this machine
    Access,
    /// The attribute map for 1 TiB of RAM, on this machine
    Map,
    /// Conversions, inside
    Conversion,
    /// Boots to init, inside, beside QEMU
    Boot,
    /// Throughput of the guest's disk and network, inside
    Io,
    /// Memory of the VMM and behind guest RAM, in the full demonstration
    Footprint,
}

/// The package that measures, and its program.
const PACKAGE: &str = "bench";
/// How long benchmarks may take inside.
const INSIDE_LIMIT: Duration = Duration::from_secs(3600);

/// Runs `lab bench`.
pub fn run(args: &Args, options: &Options) -> Result<ExitCode> {
    let wanted = |benchmark| args.benchmarks.is_empty() || args.benchmarks.contains(&benchmark);
    // Made ready first: a failure here should not wait for the others.
    let inside = wanted(Benchmark::Conversion) || wanted(Benchmark::Boot);
    let machine = inside.then(|| Machine::prepare(options)).transpose()?;
    let programs = build(workspace::cargo().args(["build", "--release", "-p", PACKAGE]).stdin(Stdio::null()))?;
    let program = programs.into_iter().find(|program| program.name == PACKAGE).context("cargo built no benchmarks")?;
    let out = workspace::default_out("bench");
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create the output folder {}", out.display()))?;
    let guest = wanted(Benchmark::Boot).then(|| demo::Guest::prepare(None, options, &out)).transpose()?;
    let bench = Bench { program: program.path, out, options };

    let mut figures = Map::new();
    let outside: Vec<OsString> = [(Benchmark::Access, "access"), (Benchmark::Map, "map")]
        .into_iter()
        .filter_map(|(benchmark, name)| wanted(benchmark).then_some(name.into()))
        .collect();
    if !outside.is_empty() {
        println!("lab: benchmarks on this machine\n");
        bench.run_here(outside, &mut figures)?;
    }
    if let (Some(machine), true) = (&machine, wanted(Benchmark::Conversion)) {
        println!("\nlab: conversions, inside\n");
        bench.run_inside(machine, vec!["conversion".into()], &mut figures)?;
    }
    if let (Some(machine), Some(guest)) = (&machine, guest) {
        println!("\nlab: boots, inside\n");
        let mut arguments: Vec<OsString> = vec!["boot".into(), "--boots".into(), args.rounds.to_string().into()];
        for (name, path) in [("--umbra", guest.umbra), ("--kernel", guest.kernel), ("--initramfs", guest.initramfs)] {
            arguments.extend([name.into(), path.into()]);
        }
        bench.run_inside(machine, arguments, &mut figures)?;
    }
    if wanted(Benchmark::Io) {
        println!("\nlab: disk and network, inside\n");
        let record = bench.out.join("io-times.json");
        demo::full::record_io(&record, args.rounds, options)?;
        bench.run_here(vec!["io".into(), "--times".into(), record.into()], &mut figures)?;
    }
    if wanted(Benchmark::Footprint) {
        println!("\nlab: the full demonstration, for its footprint\n");
        let record = bench.out.join("demo.json");
        demo::full::record(&record, options)?;
        bench.run_here(vec!["footprint".into(), "--demo".into(), record.into()], &mut figures)?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&Value::Object(figures))?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The program that measures, and where it leaves what it measured.
struct Bench<'a> {
    program: PathBuf,
    out: PathBuf,
    options: &'a Options,
}

impl Bench<'_> {
    /// Runs it on this machine.
    fn run_here(&self, arguments: Vec<OsString>, figures: &mut Map<String, Value>) -> Result<()> {
        let record = new_record(&self.out, "outside.json")?;
        let mut command = std::process::Command::new(&self.program);
        command.args(arguments).arg("--json").arg(&record).stdin(Stdio::null());
        let status = Family::start(&mut command, Vec::new()).and_then(|mut family| family.wait());
        let status = status.with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(status.success(), "the benchmarks on this machine failed: {status}");
        merge(figures, &record)
    }

    /// Runs it inside.
    fn run_inside(&self, machine: &Machine, arguments: Vec<OsString>, figures: &mut Map<String, Value>) -> Result<()> {
        let record = new_record(&self.out, "inside.json")?;
        let mut argv: Vec<OsString> = vec![self.program.clone().into()];
        argv.extend(arguments);
        argv.extend(["--json".into(), record.clone().into()]);
        let job = Job {
            argv,
            env: Vec::new(),
            out: self.out.clone(),
            time_limit: self.options.time_limit(INSIDE_LIMIT),
            terminal: Terminal::Stream,
        };
        let status = machine.run(&job)?;
        ensure!(status == 0, "the benchmarks inside failed: exit status {status}");
        merge(figures, &record)
    }
}

/// The path of a record that is not there yet: what is read later is this run's.
fn new_record(out: &Path, name: &str) -> Result<PathBuf> {
    let path = out.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(path),
    }
}

/// Adds the figures in a record, which have other keys than those that are there.
fn merge(figures: &mut Map<String, Value>, record: &Path) -> Result<()> {
    let text = std::fs::read_to_string(record).with_context(|| format!("cannot read {}", record.display()))?;
    let more: Map<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("{} is not what it should be", record.display()))?;
    figures.extend(more);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_one_run_are_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let mut figures = Map::new();
        let stale = folder.path().join("outside.json");
        std::fs::write(&stale, "old").unwrap();
        let outside = new_record(folder.path(), "outside.json").unwrap();
        assert!(!stale.exists());
        assert!(merge(&mut figures, &outside).is_err(), "there are no figures yet");
        std::fs::write(&outside, r#"{"map": {"0": {"bytes": 1}}}"#).unwrap();
        let inside = new_record(folder.path(), "inside.json").unwrap();
        std::fs::write(&inside, r#"{"conversion": {"4K": 2.5}}"#).unwrap();
        merge(&mut figures, &outside).unwrap();
        merge(&mut figures, &inside).unwrap();
        let expected = serde_json::json!({"map": {"0": {"bytes": 1}}, "conversion": {"4K": 2.5}});
        assert_eq!(Value::Object(figures), expected);
    }
}
