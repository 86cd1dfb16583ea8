//! Runs the benchmarks that need no guest, and prints their figures.
#![expect(clippy::print_stdout, reason = "figures are what this program is for")]

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use bench::{Figures, limits};
use clap::{Parser, ValueEnum};

/// Benchmarks of the memory core that need no guest.
#[derive(Debug, Parser)]
struct Options {
    /// Which ones; all if none are named.
    #[arg(value_enum)]
    benchmarks: Vec<Benchmark>,
    /// Write the medians to this file as nested objects.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Fail if a figure is above its limit.
    #[arg(long)]
    check: bool,
    /// How many rounds to measure: more take longer, and say more.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// Devices' accesses to guest memory.
    Access,
    /// The attribute map for 1 TiB of RAM.
    Map,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let wanted = |benchmark| options.benchmarks.is_empty() || options.benchmarks.contains(&benchmark);
    let mut figures = Figures::default();
    if wanted(Benchmark::Access) {
        bench::access::run(&mut figures, options.rounds as usize)?;
    }
    if wanted(Benchmark::Map) {
        bench::map::run(&mut figures, options.rounds as usize / 2)?;
    }
    print!("{figures}");
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures.to_json())?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let exceeded = limits::exceeded(&figures);
    for (limit, value) in &exceeded {
        let to = limit.to.map(|to| format!(" to {to}")).unwrap_or_default();
        println!("above its limit: {}{to} is {value:.3}, at most {} is allowed", limit.key, limit.most);
    }
    ensure!(!options.check || exceeded.is_empty(), "{} figures are above their limits", exceeded.len());
    Ok(())
}
