//! The part of `lab demo --full` that runs inside the nested host: a Debian system in unmappable memory, put to work.
//!
//! [`network`] makes a tap in a namespace, [`disk`] copies the image, [`machine`] starts umbra and steers it through its API,
//! [`ssh`] logs in to the guest, [`work`] has it use its devices, and [`steer`] does what an operator does. Then, as the
//! control, the same system is booted with `isolation=none`, to show that the search finds what can be found.

pub mod api;
mod disk;
pub mod group;
pub mod machine;
pub mod network;
pub mod peer;
pub mod ssh;
pub mod steer;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::guest::{Isolation, Plan, Searcher, new_seed};
use super::markers;
use crate::demo::figures::{Outcome, VmFigures};
use crate::demo::full::figures::{Full, FullOutcome};
use machine::{Kind, Vm};

/// The file in which the figures are left, in the output folder.
pub const FIGURES: &str = "figures.json";

/// How many processors a guest has.
const PROCESSORS: u8 = 2;
/// How long a step may take: a guest of an emulated host is slow.
pub const STEP: Duration = Duration::from_secs(600);
/// How long everything may take.
pub const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Options of `lab inside full`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub plan: Plan,
    /// What to call the guest's kernel
    #[arg(long)]
    kernel_name: String,
    /// What to call the guest's system
    #[arg(long)]
    pub system_name: String,
    /// The image of the guest's system; a copy of it is booted
    #[arg(long)]
    image: PathBuf,
    /// The private key to log in with
    #[arg(long)]
    key: PathBuf,
    /// The file that has the guest's host key
    #[arg(long)]
    known_hosts: PathBuf,
}

/// Runs the demonstration.
pub fn run(args: &Args) -> Result<ExitCode> {
    network::enter()?;
    let searcher = Searcher::own()?;
    let (software, full) = boot(args, Isolation::Software, |vm| {
        let mut full = Full { time_to_login_ms: milliseconds(vm.log_in()?), ..Full::default() };
        work::use_disk(vm, &mut full)?;
        work::use_network(vm, &mut full)?;
        steer::add_disk(vm, &mut full)?;
        let figures = work::search_while_busy(vm, &searcher, &mut full, |vm, traffic, full| {
            steer::pause_and_resume(vm, traffic, full)?;
            steer::convert_window(vm, full)?;
            steer::look_at_memory(vm, full)
        })?;
        Ok((figures, full))
    })?;
    // All that the control shows is that the search finds what can be found.
    let (none, _) = boot(args, Isolation::None, |vm| {
        vm.log_in()?;
        let mut unused = Full::default();
        Ok((work::search_while_busy(vm, &searcher, &mut unused, |_, _, _| Ok(()))?, unused))
    })?;
    let outcome = FullOutcome { demo: Outcome { software, none }, full };
    let figures = serde_json::to_vec(&outcome).context("cannot write the figures")?;
    let path = args.plan.folder.join(FIGURES);
    std::fs::write(&path, figures).with_context(|| format!("cannot write the figures to {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Boots the system, has `use_it` done, and powers it off.
fn boot(
    args: &Args,
    isolation: Isolation,
    use_it: impl Fn(&mut Vm<'_>) -> Result<(VmFigures, Full)>,
) -> Result<(VmFigures, Full)> {
    let (system, kernel, name) = (&args.system_name, &args.kernel_name, isolation.name());
    eprintln!("lab: booting {system} with Linux {kernel} and isolation={name} ...");
    let mut vm = Vm::start(args, &Kind::of(isolation, PROCESSORS), new_seed()?)?;
    let result = vm.guest.wait_for(markers::INIT, STEP).and_then(|init| {
        let time = milliseconds(init.duration_since(vm.guest.started));
        let (mut figures, mut full) = use_it(&mut vm)?;
        figures.time_to_init_ms = time;
        full.power_off_ms = milliseconds(steer::power_off(&mut vm)?);
        full.host_peak_bytes = vm.group.peak();
        Ok((figures, full))
    });
    result.map_err(|error| vm.explain(error.context(format!("with isolation={name}")), args.plan.show_console))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Runs a step, and says what it is and how long it took.
pub fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = run().with_context(|| format!("{name}: failed"))?;
    eprintln!("lab:   {name} ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(result)
}
