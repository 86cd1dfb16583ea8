//! Runs benchmarks, and prints their figures.
#![expect(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::PathBuf;

use anyhow::{Context, Result};
use bench::conversion::SizeName;
use bench::{Figures, report};
use clap::{Parser, ValueEnum};

/// Benchmarks of the memory core. `cargo lab bench` runs each where it belongs.
#[derive(Debug, Parser)]
struct Options {
    /// Which ones
    #[arg(value_enum, required = true)]
    benchmarks: Vec<Benchmark>,
    /// Write the medians to this file, as nested objects
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// How many rounds of accesses and look-ups: more take longer, and say more
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only conversions of this size; may be repeated
    #[arg(long, value_enum)]
    size: Vec<SizeName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// Devices' accesses to guest memory
    Access,
    /// The attribute map for 1 TiB of RAM
    Map,
    /// Conversions; needs a KVM with private memory
    Conversion,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut figures = Figures::default();
    for benchmark in &options.benchmarks {
        match benchmark {
            Benchmark::Access => bench::access::run(&mut figures, options.rounds as usize)?,
            Benchmark::Map => bench::map::run(&mut figures, options.rounds as usize / 2)?,
            Benchmark::Conversion => bench::conversion::run(&mut figures, &options.size)?,
        }
    }
    print!("{}", report::table(&figures));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures.to_json())?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
