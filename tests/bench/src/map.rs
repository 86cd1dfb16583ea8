//! What the attribute map costs for 1 TiB of RAM, however fragmented.
//!
//! | key | what is timed |
//! |---|---|
//! | `map.<fragments>.lookup_ns` | whether the page of a random guest address is user-mappable |
//! | `map.<fragments>.set_page_ns` | a random page made private: revoke, look for guards of eight devices, commit |
//! | `map.<fragments>.set_gib_ns` | all shared pages of a random GiB made private, run by run, in the same way |
//! | `map.<fragments>.set_all_ns` | the same for all RAM |
//! | `map.<fragments>.bytes` | memory that the map holds |
//!
//! | `map.1000000.<lookup, set_page>_growth` | the same to the map without fragments |
//!
//! RAM lies in several pieces with holes between. A fragment is a private run of random length; as many are spread evenly
//! over RAM. The three maps exist side by side and take turns.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hypervisor::{GpaRange, PAGE_SIZE, PageState};
use vmm::memory::guarded::{
    AttributeMap, GuardHandle, Guards, PageRange, RamPiece, RamTable, StatePlane, WaitForGuards, Writer,
};

use crate::figures::{Figures, Sample};
use crate::numbers::Numbers;

const GIB: u64 = 1 << 30;

/// RAM of each map.
const SIZE: u64 = 1024 * GIB;

/// Private runs of each map.
const FRAGMENTS: [u64; 3] = [0, 1000, 1_000_000];

/// Conversions that a map has room for at a time.
const IN_FLIGHT: usize = 64;

/// Devices whose slots are looked at.
const DEVICES: usize = 8;

/// Operations of a round.
const LOOKUPS: usize = 4096;
const PAGES: usize = 256;

/// Pieces of RAM: guest address and size.
const PIECES: [(u64, u64); 4] = [(0, 3 * GIB), (4 * GIB, 253 * GIB), (512 * GIB, 256 * GIB), (1024 * GIB, 512 * GIB)];

struct Subject {
    fragments: u64,
    map: AttributeMap,
    guards: Arc<Guards>,
    writer: Writer,
    _devices: Vec<GuardHandle>,
    bytes: u64,
}

impl Subject {
    fn new(fragments: u64) -> Result<Self> {
        let before = resident()?;
        let (plane, writer) = StatePlane::new(SIZE, IN_FLIGHT)?;
        let guards = Guards::new(plane.clone());
        let devices = (0..DEVICES).map(|_| guards.handle("bench")).collect();
        let map = AttributeMap::new(table()?, plane.clone())?;
        let mut subject = Self { fragments, map, guards, writer, _devices: devices, bytes: 0 };
        let stride = plane.pages().checked_div(fragments).unwrap_or(0);
        let mut numbers = Numbers::new();
        for fragment in 0..fragments {
            let first = fragment * stride;
            let range = PageRange::new(first, first + 1 + numbers.below(stride - 2)).context("a fragment")?;
            subject.make_private(range)?;
        }
        // What the allocator says and what the kernel says: the larger one.
        subject.bytes = resident()?.saturating_sub(before).max(plane.bytes_held() as u64);
        Ok(subject)
    }

    fn make_private(&mut self, range: PageRange) -> Result<()> {
        let revoked = self.writer.revoke(range)?;
        let quiesced = revoked.quiesce(&WaitForGuards, &self.guards, &mut |_| ControlFlow::Continue(()));
        self.writer.commit(quiesced.ok().context("nobody gives up")?);
        Ok(())
    }

    /// Makes all shared pages of a range private, and returns which they were.
    fn make_all_private(&mut self, range: PageRange) -> Result<Vec<PageRange>> {
        let shared = self.writer.runs(range).filter(|run| run.state == PageState::Shared);
        let shared: Vec<PageRange> = shared.map(|run| run.pages).collect();
        for range in &shared {
            self.make_private(*range)?;
        }
        Ok(shared)
    }

    fn share_again(&mut self, ranges: &[PageRange]) -> Result<()> {
        ranges.iter().try_for_each(|range| self.writer.share(*range).map_err(Into::into))
    }

    fn look_up(&self, addresses: &[u64]) -> f64 {
        let start = Instant::now();
        let mappable = addresses.iter().filter(|gpa| self.map.is_gpa_user_mappable(**gpa)).count();
        black_box(mappable);
        start.elapsed().as_nanos() as f64 / addresses.len() as f64
    }

    fn set_pages(&mut self, numbers: &mut Numbers) -> Result<f64> {
        let plane = self.guards.plane().clone();
        let mut ranges = Vec::with_capacity(PAGES);
        while ranges.len() < PAGES {
            let page = numbers.below(plane.pages());
            let range = PageRange::new(page, page + 1).context("a page")?;
            if !plane.is_private(page) && !ranges.contains(&range) {
                ranges.push(range);
            }
        }
        let start = Instant::now();
        for range in &ranges {
            self.make_private(*range)?;
        }
        let time = start.elapsed().as_nanos() as f64 / PAGES as f64;
        self.share_again(&ranges)?;
        Ok(time)
    }

    fn set_range(&mut self, range: PageRange) -> Result<f64> {
        let start = Instant::now();
        let converted = self.make_all_private(range)?;
        let time = start.elapsed().as_nanos() as f64;
        ensure!(self.guards.plane().is_all(range, PageState::Private), "{range} are not private");
        self.share_again(&converted)?;
        Ok(time)
    }
}

fn table() -> Result<RamTable> {
    let mut offset = 0;
    let mut pieces = Vec::new();
    for (start, size) in PIECES {
        pieces.push(RamPiece { gpa: GpaRange::new(start, size)?, offset, devices: true });
        offset += size;
    }
    Ok(RamTable::new(pieces, SIZE)?)
}

/// Random addresses of RAM.
fn addresses(numbers: &mut Numbers) -> Vec<u64> {
    let address = |mut offset: u64| {
        PIECES.iter().find_map(|(start, size)| {
            let here = (offset < *size).then_some(start + offset);
            offset = offset.saturating_sub(*size);
            here
        })
    };
    (0..LOOKUPS).filter_map(|_| address(numbers.below(SIZE))).collect()
}

/// Memory of this process that is there, in bytes.
fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("cannot read /proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).context("no resident size in /proc/self/statm")?;
    Ok(pages.parse::<u64>().context("bad resident size in /proc/self/statm")? * PAGE_SIZE)
}

/// Runs all benchmarks of the map.
///
/// # Errors
/// No memory for the maps.
pub fn run(figures: &mut Figures, rounds: usize) -> Result<()> {
    let mut subjects = Vec::new();
    for fragments in FRAGMENTS {
        subjects.push(Subject::new(fragments)?);
    }
    let mut numbers = Numbers::new();
    let mut times: Vec<[Vec<f64>; 4]> = FRAGMENTS.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        for (subject, [lookup, set_page, set_gib, set_all]) in subjects.iter_mut().zip(&mut times) {
            let plane = subject.guards.plane().clone();
            lookup.push(subject.look_up(&addresses(&mut numbers)));
            set_page.push(subject.set_pages(&mut numbers)?);
            if round % 10 == 0 {
                let first = numbers.below(SIZE / GIB) * (GIB / PAGE_SIZE);
                let gib = PageRange::new(first, first + GIB / PAGE_SIZE).context("a GiB")?;
                set_gib.push(subject.set_range(gib)?);
            }
            if round % 100 == 0 {
                set_all.push(subject.set_range(plane.all())?);
            }
        }
    }
    for (subject, [lookup, set_page, set_gib, set_all]) in subjects.iter().zip(&times) {
        let key = format!("map.{}", subject.fragments);
        let sample = |times: &Vec<f64>| Sample::of(times.iter().copied());
        figures.add(format!("{key}.lookup_ns"), sample(lookup));
        figures.add(format!("{key}.set_page_ns"), sample(set_page));
        figures.add(format!("{key}.set_gib_ns"), sample(set_gib));
        figures.add(format!("{key}.set_all_ns"), sample(set_all));
        figures.add(format!("{key}.bytes"), Sample::of([subject.bytes as f64]));
    }
    if let ([none, ..], [.., many]) = (&times[..], &times[..]) {
        figures.note("map.1000000.lookup_growth", Sample::ratio(&many[0], &none[0]));
        figures.note("map.1000000.set_page_growth", Sample::ratio(&many[1], &none[1]));
    }
    Ok(())
}
