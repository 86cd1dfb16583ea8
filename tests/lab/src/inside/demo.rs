//! The part of `lab demo` that runs inside the nested host: both virtual machines, one after the other.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use super::guest::{Isolation, Limits, Plan, Searcher, new_seed};
use crate::demo::figures::Outcome;
use crate::process::start_in_foreground;

/// The file in which the figures are left, in the output folder.
pub const FIGURES: &str = "figures.json";

/// Options of `lab inside demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: Plan,
    /// What to call the guest's kernel
    #[arg(long)]
    kernel_name: String,
    /// Boot with isolation=software only, and connect the guest's console to this terminal
    #[arg(long)]
    interactive: bool,
}

/// Runs the demonstration.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.interactive { interact(args) } else { measure(args) }
}

fn measure(args: &Args) -> Result<ExitCode> {
    let searcher = Searcher::own()?;
    let limits = Limits::default();
    let demonstrate = |isolation: Isolation| {
        eprintln!("lab: booting Linux {} with isolation={} ...", args.kernel_name, isolation.name());
        let figures = args.plan.demonstrate(isolation, &limits, &searcher)?;
        eprintln!("lab: booted, searched and powered off");
        anyhow::Ok(figures)
    };
    let outcome = Outcome { software: demonstrate(Isolation::Software)?, none: demonstrate(Isolation::None)? };
    let figures = serde_json::to_vec(&outcome).context("cannot write the figures")?;
    let path = args.plan.folder.join(FIGURES);
    std::fs::write(&path, figures).with_context(|| format!("cannot write the figures to {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn interact(args: &Args) -> Result<ExitCode> {
    eprintln!("lab: booting Linux {} with isolation=software; `exit` powers the guest off", args.kernel_name);
    let mut command = args.plan.command(Isolation::Software, &new_seed()?);
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let status = start_in_foreground(&mut command)
        .and_then(|mut child| child.wait())
        .with_context(|| format!("cannot run {}", args.plan.umbra.display()))?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("lab: umbra ended with {status}");
    Ok(ExitCode::FAILURE)
}
