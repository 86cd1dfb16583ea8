//! What a conversion costs, beside the two system calls that it takes at least.
//!
//! | key | what is timed |
//! |---|---|
//! | `conversion.<size>.<to>.visible_ratio` | one conversion, with quiet before and after: how long a vCPU waits for it |
//! | `conversion.<size>.<to>.sustained_ratio` | all of RAM, one conversion of this size after the other, without a pause |
//! | `conversion.<size>.<to>.cpu_ratio` | processor time of the whole process for that, discards behind the reply included |
//! | `conversion.round_trip.*` | what a guest waits for a hypercall: see [`round_trip`] |
//!
//! Ratios are to the bare sequence (set the attribute, then punch the side that is left) on the same VM in the same
//! process, in turns with it. The VM has 4 GiB of RAM on ordinary slots with two backings. Before each conversion, the side
//! that it leaves has memory behind each page.
//!
//! Conversions whose discards are done at once leave nothing for later, so RAM is converted in stretches by one way and the
//! other in turns, of which there are many. Of 4 KiB, a quarter of all stretches is enough. For larger ones, whose discards
//! may fall behind up to a limit, a stretch is the whole of RAM.

pub mod round_trip;
pub mod subject;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hypervisor::kvm::KvmHypervisor;
use hypervisor::{GpaRange, PageState};
use rustix::time::{ClockId, clock_gettime};

use crate::figures::{Figures, Sample};
use crate::numbers::Numbers;
use subject::{Subject, Way};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// RAM of the VM.
const RAM: u64 = 4 * GIB;

/// A size of conversions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
#[expect(missing_docs, reason = "the names say all there is to say")]
pub enum SizeName {
    #[value(name = "4K")]
    K4,
    #[value(name = "64K")]
    K64,
    #[value(name = "2M")]
    M2,
    #[value(name = "64M")]
    M64,
    #[value(name = "1G")]
    G1,
}

/// How conversions of a size are timed.
struct Plan {
    name: &'static str,
    bytes: u64,
    /// How many are timed alone.
    isolated: usize,
    /// Bytes of RAM that one way converts without a pause.
    stretch: u64,
    /// One stretch of so many is timed.
    every: usize,
    /// How often.
    passes: usize,
}

impl SizeName {
    fn plan(self) -> Plan {
        let plan =
            |name, bytes, isolated, stretch, every, passes| Plan { name, bytes, isolated, stretch, every, passes };
        match self {
            Self::K4 => plan("4K", 4 * KIB, 500, 16 * MIB, 4, 1),
            Self::K64 => plan("64K", 64 * KIB, 300, 64 * MIB, 1, 1),
            Self::M2 => plan("2M", 2 * MIB, 100, RAM, 1, 3),
            Self::M64 => plan("64M", 64 * MIB, 16, RAM, 1, 3),
            Self::G1 => plan("1G", GIB, 5, RAM, 1, 3),
        }
    }
}

const STATES: [(PageState, &str); 2] = [(PageState::Private, "to_private"), (PageState::Shared, "to_shared")];

/// Times of the engine and of the bare sequence.
#[derive(Default)]
struct Both([Vec<f64>; 2]);

impl Both {
    fn add(&mut self, way: Way, time: f64) {
        self.0[way as usize].push(time);
    }

    fn ratio(&self) -> Sample {
        Sample::ratio(&self.0[0], &self.0[1])
    }

    fn of(&self, way: Way) -> Sample {
        Sample::of(self.0[way as usize].iter().copied())
    }
}

/// Processor time of this process, in nanoseconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// The two ways, in alternating order.
fn ways(round: usize) -> [Way; 2] {
    if round.is_multiple_of(2) { [Way::Engine, Way::Bare] } else { [Way::Bare, Way::Engine] }
}

/// Runs the benchmarks of conversions of these sizes; of all, and round trips, if there are none.
///
/// # Errors
/// A host without software-protected VMs; no memory for one; a conversion that failed.
pub fn run(figures: &mut Figures, sizes: &[SizeName]) -> Result<()> {
    let kvm = KvmHypervisor::open()?;
    if sizes.is_empty() {
        round_trip::run(figures, &kvm)?;
    }
    let subject = Subject::new(&kvm, RAM).context("cannot set up a VM of 4 GiB")?;
    for size in if sizes.is_empty() { SizeName::value_variants() } else { sizes } {
        let plan = size.plan();
        isolated(figures, &subject, &plan)?;
        sustained(figures, &subject, &plan)?;
    }
    Ok(())
}

/// Conversions of random ranges, one at a time.
fn isolated(figures: &mut Figures, subject: &Subject, plan: &Plan) -> Result<()> {
    eprintln!("conversions of {}, one at a time", plan.name);
    let mut numbers = Numbers::new();
    let pieces = subject.pieces(plan.bytes)?;
    let mut times = <[Both; 2]>::default();
    for round in 0..plan.isolated {
        let range = pieces[numbers.below(pieces.len() as u64) as usize];
        for way in ways(round) {
            for ((to, _), times) in STATES.iter().zip(&mut times) {
                subject.populate(range, to.other())?;
                let start = Instant::now();
                subject.convert(way, range, *to)?;
                times.add(way, start.elapsed().as_nanos() as f64);
                subject.settle()?;
            }
        }
    }
    for ((_, to), times) in STATES.iter().zip(&times) {
        let key = format!("conversion.{}.{to}", plan.name);
        figures.add(format!("{key}.visible_ratio"), times.ratio());
        figures.note(format!("{key}.visible_ns"), times.of(Way::Engine));
        figures.note(format!("{key}.bare_ns"), times.of(Way::Bare));
    }
    Ok(())
}

/// All of RAM, one conversion after the other.
fn sustained(figures: &mut Figures, subject: &Subject, plan: &Plan) -> Result<()> {
    eprintln!("conversions of {}, one after the other", plan.name);
    let pieces = subject.pieces(plan.bytes)?;
    let per_stretch = usize::try_from(plan.stretch / plan.bytes)?;
    let (mut times, mut work) = (<[Both; 2]>::default(), <[Both; 2]>::default());
    for pass in 0..plan.passes {
        for (round, stretch) in pieces.chunks(per_stretch).step_by(plan.every).enumerate() {
            for way in ways(pass + round) {
                for (index, (to, _)) in STATES.iter().enumerate() {
                    let (time, spent) = convert_all(subject, stretch, way, *to)?;
                    times[index].add(way, time);
                    work[index].add(way, spent);
                }
            }
        }
    }
    for ((_, to), (times, work)) in STATES.iter().zip(times.iter().zip(&work)) {
        let key = format!("conversion.{}.{to}", plan.name);
        figures.add(format!("{key}.sustained_ratio"), times.ratio());
        figures.add(format!("{key}.cpu_ratio"), work.ratio());
    }
    Ok(())
}

/// Converts ranges without a pause. Returns how long it took until a vCPU could go on, and the processor time until all was
/// given back, in nanoseconds.
fn convert_all(subject: &Subject, ranges: &[GpaRange], way: Way, to: PageState) -> Result<(f64, f64)> {
    ranges.iter().try_for_each(|range| subject.populate(*range, to.other()))?;
    let (start, before) = (Instant::now(), processor_time());
    for range in ranges {
        subject.convert(way, *range, to)?;
    }
    let time = start.elapsed().as_nanos() as f64;
    subject.settle()?;
    let work = processor_time() - before;
    if to == PageState::Private {
        ensure!(subject.shared_bytes()? == 0, "shared memory was left behind");
    }
    Ok((time, work))
}
