//! What a device's access to guest memory costs, beside vm-memory's own without any check of pages.
//!
//! | key | what is timed |
//! |---|---|
//! | `access.<op>.<bytes>.per_access_ratio` | an access through a view, with a guard for each, in the place of a `GuestMemoryMmap` |
//! | `access.<op>.<bytes>.held_ratio` | the same through a window that is held all the time |
//! | `access.<op>.8.own_ratio` | the view's own `read_obj` and `write_obj`, which take no detour through slices |
//! | `access.read.8.growth_<median, mean>` | how much slower a read gets while another thread converts other pages |
//!
//! All ratios are to the same access to a `GuestMemoryMmap` of three regions, which checks nothing but the bounds, compiled
//! from the same generic code. Both memories are memfds, mapped and touched in advance; addresses are random, and the same
//! for both.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hypervisor::{GpaRange, PAGE_SIZE, SharedMemory};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm::memory::guarded::{
    DeviceMemory, DeviceView, Guards, PageRange, RamPiece, RamTable, StatePlane, WaitForGuards, Writer,
};

use crate::figures::{Figures, Sample};
use crate::numbers::Numbers;

const MIB: u64 = 1 << 20;

/// Three regions of RAM, as in a guest with a hole below 1 MiB and one below 4 GiB: start and size.
const REGIONS: [(u64, u64); 3] = [(0, 64 * MIB), (128 * MIB, 64 * MIB), (4096 * MIB, 128 * MIB)];

/// The part of RAM that no address is in: the pages that are converted while others are read.
const CONVERTED: u64 = 16 * MIB;

/// Addresses in one round.
const ADDRESSES: usize = 1024;

/// Different pages among them.
const PAGES: usize = 256;

/// Different pages for accesses of a whole page: few enough to stay in the second-level cache.
const LARGE_PAGES: usize = 64;

/// How often another page is converted while others are read.
const CONVERSION_INTERVAL: Duration = Duration::from_micros(5);

/// Conversions that the map has room for at a time.
const IN_FLIGHT: usize = 8;

/// RAM twice: unchecked, and as devices see it.
struct Subjects {
    plain: GuestMemoryMmap,
    device: Arc<DeviceMemory>,
    writer: Writer,
}

impl Subjects {
    fn new() -> Result<Self> {
        let size = REGIONS.iter().map(|(_, size)| size).sum();
        let file = Arc::new(std::fs::File::from(rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::CLOEXEC)?));
        file.set_len(size)?;
        let (mut offset, mut regions, mut pieces) = (0, Vec::new(), Vec::new());
        for (start, size) in REGIONS {
            regions.push((GuestAddress(start), size as usize, Some(FileOffset::from_arc(file.clone(), offset))));
            pieces.push(RamPiece { gpa: GpaRange::new(start, size)?, offset, devices: true });
            offset += size;
        }
        let plain = GuestMemoryMmap::from_ranges_with_files(regions)?;
        let mapping = Arc::new(SharedMemory::new("device", size)?);
        let (plane, writer) = StatePlane::new(size, IN_FLIGHT)?;
        let device = DeviceMemory::new(mapping, RamTable::new(pieces, size)?, Guards::new(plane), Box::new(|_| {}))?;
        Ok(Self { plain, device, writer })
    }
}

/// Addresses of `size` bytes each, and so aligned, in `pages` different pages of these regions.
fn addresses(regions: &[(u64, u64)], size: u64, pages: usize) -> Vec<GuestAddress> {
    let mut numbers = Numbers::new();
    let pages: Vec<u64> = (0..pages)
        .map(|_| {
            let (start, length) = regions[numbers.below(regions.len() as u64) as usize];
            start + CONVERTED + numbers.below((length - CONVERTED) / PAGE_SIZE) * PAGE_SIZE
        })
        .collect();
    (0..ADDRESSES)
        .map(|_| {
            let page = pages[numbers.below(pages.len() as u64) as usize];
            GuestAddress(page + numbers.below(PAGE_SIZE / size) * size)
        })
        .collect()
}

#[inline(never)]
fn read_8<M: GuestMemory>(memory: &M, addresses: &[GuestAddress]) -> usize {
    addresses.iter().map(|address| usize::from(black_box(memory.read_obj::<u64>(*address)).is_ok())).sum()
}

#[inline(never)]
fn write_8<M: GuestMemory>(memory: &M, addresses: &[GuestAddress]) -> usize {
    addresses.iter().map(|address| usize::from(memory.write_obj(address.0, *address).is_ok())).sum()
}

#[inline(never)]
fn own_read_8(view: &DeviceView, addresses: &[GuestAddress]) -> usize {
    addresses.iter().map(|address| usize::from(black_box(view.read_obj::<u64>(*address)).is_ok())).sum()
}

#[inline(never)]
fn own_write_8(view: &DeviceView, addresses: &[GuestAddress]) -> usize {
    addresses.iter().map(|address| usize::from(view.write_obj(address.0, *address).is_ok())).sum()
}

#[inline(never)]
fn read_4096<M: GuestMemory>(memory: &M, addresses: &[GuestAddress], buffer: &mut [u8]) -> usize {
    addresses.iter().map(|address| usize::from(memory.read_slice(black_box(&mut *buffer), *address).is_ok())).sum()
}

#[inline(never)]
fn write_4096<M: GuestMemory>(memory: &M, addresses: &[GuestAddress], buffer: &[u8]) -> usize {
    addresses.iter().map(|address| usize::from(memory.write_slice(black_box(buffer), *address).is_ok())).sum()
}

/// Times of one way to access memory, and how many accesses went wrong.
#[derive(Default)]
struct Times {
    nanoseconds: Vec<f64>,
    failures: usize,
}

impl Times {
    /// Adds nanoseconds for each access of a round, which says how many accesses went well.
    fn round(&mut self, round: impl FnOnce() -> usize) {
        let start = Instant::now();
        let successes = black_box(round());
        self.nanoseconds.push(start.elapsed().as_nanos() as f64 / ADDRESSES as f64);
        self.failures += ADDRESSES - successes;
    }
}

/// Runs all benchmarks of access.
///
/// # Errors
/// No memory for the subjects; an access that failed.
pub fn run(figures: &mut Figures, rounds: usize) -> Result<()> {
    let mut subjects = Subjects::new()?;
    let mut buffer = vec![1u8; PAGE_SIZE as usize];
    one_size(figures, rounds, &subjects, 8, PAGES, &mut buffer)?;
    one_size(figures, rounds, &subjects, PAGE_SIZE, LARGE_PAGES, &mut buffer)?;
    growth(figures, rounds, &mut subjects)
}

/// Reads and writes of one size: in all regions with a guard for each, and in one region through a window.
fn one_size(
    figures: &mut Figures,
    rounds: usize,
    subjects: &Subjects,
    size: u64,
    pages: usize,
    buffer: &mut [u8],
) -> Result<()> {
    let (plain, view) = (&subjects.plain, &subjects.device.view("bench"));
    let (start, length) = REGIONS[2];
    let window = &view.window(GuestAddress(start), length as usize)?;
    let everywhere = addresses(&REGIONS, size, pages);
    let inside = addresses(&REGIONS[2..], size, pages);
    let [mut plain_read, mut plain_write, mut read, mut write, mut own_read, mut own_write] = <[Times; 6]>::default();
    let [mut plain_held_read, mut plain_held_write, mut held_read, mut held_write] = <[Times; 4]>::default();
    for _ in 0..rounds {
        if size == 8 {
            plain_read.round(|| read_8(plain, &everywhere));
            read.round(|| read_8(view, &everywhere));
            own_read.round(|| own_read_8(view, &everywhere));
            plain_write.round(|| write_8(plain, &everywhere));
            write.round(|| write_8(view, &everywhere));
            own_write.round(|| own_write_8(view, &everywhere));
            plain_held_read.round(|| read_8(plain, &inside));
            held_read.round(|| read_8(window, &inside));
            plain_held_write.round(|| write_8(plain, &inside));
            held_write.round(|| write_8(window, &inside));
        } else {
            plain_read.round(|| read_4096(plain, &everywhere, buffer));
            read.round(|| read_4096(view, &everywhere, buffer));
            plain_write.round(|| write_4096(plain, &everywhere, buffer));
            write.round(|| write_4096(view, &everywhere, buffer));
            plain_held_read.round(|| read_4096(plain, &inside, buffer));
            held_read.round(|| read_4096(window, &inside, buffer));
            plain_held_write.round(|| write_4096(plain, &inside, buffer));
            held_write.round(|| write_4096(window, &inside, buffer));
        }
    }
    let mut add = |op: &str, way: &str, plain: &Times, guarded: &Times| -> Result<()> {
        ensure!(plain.failures + guarded.failures == 0, "accesses of {size} bytes failed");
        let key = format!("access.{op}.{size}");
        let ratio = Sample::ratio(&guarded.nanoseconds, &plain.nanoseconds);
        match way {
            "own" => figures.note(format!("{key}.{way}_ratio"), ratio),
            _ => figures.add(format!("{key}.{way}_ratio"), ratio),
        }
        figures.note(format!("{key}.{way}_ns"), Sample::of(guarded.nanoseconds.iter().copied()));
        if way == "per_access" {
            figures.note(format!("{key}.unchecked_ns"), Sample::of(plain.nanoseconds.iter().copied()));
        }
        Ok(())
    };
    add("read", "per_access", &plain_read, &read)?;
    add("write", "per_access", &plain_write, &write)?;
    add("read", "held", &plain_held_read, &held_read)?;
    add("write", "held", &plain_held_write, &held_write)?;
    if size == 8 {
        add("read", "own", &plain_read, &own_read)?;
        add("write", "own", &plain_write, &own_write)?;
    }
    Ok(())
}

/// How much slower reads of 8 bytes get while another thread converts other pages, one every few microseconds.
///
/// Quiet and busy stretches take turns. A stretch is short enough to fit between two turns of a scheduler, and a busy one
/// counts only if as many conversions as should have were really made beside it. The median is of short rounds; the mean is
/// of the reader's processor time, so that it holds what conversions cost the reader, and not what other programs do.
fn growth(figures: &mut Figures, rounds: usize, subjects: &mut Subjects) -> Result<()> {
    /// Stretches that are begun for each that counts, at most.
    const ATTEMPTS: usize = 100;
    let view = subjects.device.view("bench");
    let reads = addresses(&REGIONS, 8, PAGES);
    let wanted = (rounds / 20).max(4);
    let guards = subjects.device.guards().clone();
    let (writer, converter) = (&mut subjects.writer, Converter::default());
    let (mut medians, mut means, mut conversions) = (<[Vec<f64>; 2]>::default(), <[Vec<f64>; 2]>::default(), 0);
    std::thread::scope(|scope| -> Result<()> {
        let thread = scope.spawn(|| converter.run(writer, &guards));
        for _ in 0..wanted * ATTEMPTS {
            let quiet = stretch(&view, &reads);
            converter.busy.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(100));
            let before = converter.conversions.load(Ordering::Relaxed);
            let start = Instant::now();
            let busy = stretch(&view, &reads);
            let due = start.elapsed().as_micros() / CONVERSION_INTERVAL.as_micros();
            let made = converter.conversions.load(Ordering::Relaxed) - before;
            converter.busy.store(false, Ordering::Relaxed);
            if u128::from(made) * 10 >= due * 8 {
                for (index, (median, mean)) in [quiet, busy].into_iter().enumerate() {
                    medians[index].push(median);
                    means[index].push(mean);
                }
                conversions += made;
            }
            if means[1].len() == wanted || thread.is_finished() {
                break;
            }
        }
        converter.done.store(true, Ordering::Relaxed);
        thread.join().ok().context("the converter panicked")?
    })?;
    ensure!(means[1].len() == wanted, "other programs leave too little processor time to convert beside a reader");
    figures.add("access.read.8.growth_median", Sample::ratio(&medians[1], &medians[0]));
    figures.add("access.read.8.growth_mean", Sample::ratio(&means[1], &means[0]));
    figures.note("access.read.8.growth_conversions", Sample::of([conversions as f64]));
    Ok(())
}

/// Reads for about a millisecond. Returns the median of a short round, and the processor time of all, in nanoseconds.
fn stretch(view: &DeviceView, reads: &[GuestAddress]) -> (f64, f64) {
    /// Accesses of a short round.
    const SHORT: usize = 32;
    /// Rounds of all addresses.
    const ROUNDS: usize = 100;
    let mut times = Vec::with_capacity(ROUNDS * ADDRESSES / SHORT);
    let before = clock_gettime(ClockId::ThreadCPUTime);
    for _ in 0..ROUNDS {
        for part in reads.chunks(SHORT) {
            let start = Instant::now();
            black_box(read_8(view, part));
            times.push(start.elapsed().as_nanos() as f64);
        }
    }
    let after = clock_gettime(ClockId::ThreadCPUTime);
    let spent = (after.tv_sec - before.tv_sec) as f64 * 1e9 + (after.tv_nsec - before.tv_nsec) as f64;
    (Sample::of(times).median, spent)
}

/// A thread that converts pages that nobody reads.
#[derive(Default)]
struct Converter {
    busy: AtomicBool,
    done: AtomicBool,
    conversions: AtomicU64,
}

impl Converter {
    /// Converts one page to private and back after the other while `busy`, until `done`.
    fn run(&self, writer: &mut Writer, guards: &Guards) -> Result<()> {
        let mut numbers = Numbers::new();
        let mut next = Instant::now();
        while !self.done.load(Ordering::Relaxed) {
            if Instant::now() < next {
                std::hint::spin_loop();
                continue;
            }
            next = Instant::now() + CONVERSION_INTERVAL;
            // The clock is watched in quiet times, too: only the conversions are to make the difference.
            if !self.busy.load(Ordering::Relaxed) {
                continue;
            }
            let page = numbers.below(CONVERTED / PAGE_SIZE);
            let range = PageRange::new(page, page + 1).context("a page")?;
            let quiesced = writer.revoke(range)?.quiesce(&WaitForGuards, guards, &mut |_| ControlFlow::Continue(()));
            writer.commit(quiesced.ok().context("nobody gives up")?);
            writer.share(range)?;
            self.conversions.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
