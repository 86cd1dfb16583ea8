//! The part of `lab bench io` that runs inside: how fast the guest's disk and network are, in three kinds of machine.
//!
//! ```text
//! none       isolation=none
//! swiotlb    isolation=none, and Linux is told to bounce all that devices get at through its swiotlb, as it has to in
//! software   isolation=software
//! ```
//!
//! All three are the Debian system of the full demonstration and live at the same time, each in a network namespace of its own
//! ([`guest`]). They make their transfers in turns, one at a time, while the others are idle, so that what else goes on on the
//! machine meets all of them; each round begins with another one. How fast a guest is depends on where its memory happens to be,
//! too, so a third of the rounds is made with three new guests each, whose first round counts for nothing. The times are left in
//! a file, for the package bench to judge.

mod guest;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::full::machine::Kind;
use super::full::{self};
use super::guest::Isolation;
use guest::Guest;

/// The file in which the times are left, in the output folder.
pub const TIMES: &str = "io-times.json";
/// How often new guests are booted.
const SETS: usize = 3;
/// How much is transferred at a time.
const MIB: u64 = 64;

const TRANSFERS: [&str; 4] = ["disk_write", "disk_read", "network_in", "network_out"];

// One processor: of the two that the nested host has for programs, the other is for the VMM's threads.
const KINDS: [Kind; 3] = [
    Kind::of(Isolation::None, 1),
    Kind {
        name: "swiotlb",
        platform: ",access_platform=on",
        command_line: " swiotlb=force",
        ..Kind::of(Isolation::None, 1)
    },
    Kind::of(Isolation::Software, 1),
];

/// Times in nanoseconds, by the name of the machine and the transfer.
type Times = BTreeMap<&'static str, BTreeMap<&'static str, Vec<u64>>>;

#[derive(Debug, Serialize)]
struct Record {
    bytes: u64,
    times: Times,
}

/// Options of `lab inside io`.
#[derive(Debug, clap::Args)]
#[group(id = "io")]
pub struct Args {
    #[command(flatten)]
    system: full::Args,
    /// How often each transfer is made
    #[arg(long)]
    rounds: u32,
}

/// Measures all of them.
pub fn run(args: &Args) -> Result<ExitCode> {
    let times = measure(args)?;
    let path = args.system.plan.folder.join(TIMES);
    let record = serde_json::to_vec(&Record { bytes: MIB << 20, times })?;
    std::fs::write(&path, record).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &Args) -> Result<Times> {
    let (rounds, mut times) = (args.rounds as usize, Times::new());
    // As many rounds with each set of guests, give or take one.
    for set in 0..SETS {
        let (from, to) = (set * rounds / SETS, (set + 1) * rounds / SETS);
        if from == to {
            continue;
        }
        for (guest, transfers) in with_new_guests(args, from + 1..=to)? {
            for (transfer, more) in transfers {
                times.entry(guest).or_default().entry(transfer).or_default().extend(more);
            }
        }
    }
    Ok(times)
}

fn with_new_guests(args: &Args, rounds: RangeInclusive<usize>) -> Result<Times> {
    std::thread::scope(|scope| {
        let mut guests = Vec::new();
        for kind in &KINDS {
            eprintln!("lab: booting {}, {} ...", args.system.system_name, kind.name);
            guests.push(Guest::start(scope, &args.system, kind)?);
        }
        let mut times = Times::new();
        let warm_up = std::iter::once(None);
        for round in warm_up.chain(rounds.map(Some)) {
            match round {
                None => eprintln!("lab: a round that does not count"),
                Some(round) => eprintln!("lab: round {round} of {}", args.rounds),
            }
            for transfer in TRANSFERS {
                for turn in 0..guests.len() {
                    let guest = &mut guests[(round.unwrap_or(0) + turn) % KINDS.len()];
                    let time = guest.transfer(transfer)?;
                    if round.is_some() {
                        times.entry(guest.name()).or_default().entry(transfer).or_default().push(time);
                    }
                }
            }
        }
        guests.into_iter().try_for_each(Guest::end)?;
        Ok(times)
    })
}
