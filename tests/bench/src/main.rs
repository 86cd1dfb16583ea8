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
    /// How often each machine is booted, after a first time that does not count
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    boots: u32,
    /// The umbra program, for boots
    #[arg(long, value_name = "PATH", required_if_eq("benchmarks", "boot"))]
    umbra: Option<PathBuf>,
    /// The kernel that is booted, a vmlinuz
    #[arg(long, value_name = "PATH", required_if_eq("benchmarks", "boot"))]
    kernel: Option<PathBuf>,
    /// The initramfs that is booted: that of `cargo lab demo`
    #[arg(long, value_name = "PATH", required_if_eq("benchmarks", "boot"))]
    initramfs: Option<PathBuf>,
    /// What `cargo lab demo --full --json` wrote, for the footprint
    #[arg(long, value_name = "PATH", required_if_eq("benchmarks", "footprint"))]
    demo: Option<PathBuf>,
    /// What the lab's guests measured of their devices, for io
    #[arg(long, value_name = "PATH", required_if_eq("benchmarks", "io"))]
    times: Option<PathBuf>,
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
    /// Boots, beside QEMU; needs a KVM with private memory
    Boot,
    /// Throughput of disk and network, by what the lab's guests measured
    Io,
    /// Memory that a machine takes, by what the full demonstration measured
    Footprint,
}

/// A temporary folder.
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("umbra-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut figures = Figures::default();
    for benchmark in &options.benchmarks {
        match benchmark {
            Benchmark::Access => bench::access::run(&mut figures, options.rounds as usize)?,
            Benchmark::Map => bench::map::run(&mut figures, options.rounds as usize / 2)?,
            Benchmark::Boot => {
                let folder = Folder::create()?;
                let path =
                    |path: &Option<PathBuf>| path.clone().context("boots need a program, a kernel and an initramfs");
                let (umbra, kernel) = (path(&options.umbra)?, path(&options.kernel)?);
                let machines = bench::boot::Files { umbra, kernel, initramfs: path(&options.initramfs)? };
                bench::boot::run(&mut figures, &machines, options.boots as usize, &folder.0)?;
            }
            Benchmark::Io => {
                let times = options.times.as_deref().context("io needs the times that guests measured")?;
                bench::io::run(&mut figures, times)?;
            }
            Benchmark::Footprint => {
                let demo = options.demo.as_deref().context("the footprint needs the demonstration's figures")?;
                bench::footprint::run(&mut figures, demo)?;
            }
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
