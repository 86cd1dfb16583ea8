//! What a device's access to guest memory costs, beside vm-memory's own without any check of pages.
//!
//! | key | what is timed |
//! |---|---|
//! | `access.<op>.<bytes>.per_access_ratio` | an access through a view, with a guard for each, in the place of a `GuestMemoryMmap` |
//! | `access.<op>.<bytes>.held_ratio` | the same through a window that is held all the time |
//! | `access.<op>.8.own_ratio` | the view's own `read_obj` and `write_obj`, which take no detour through slices |
//! | `access.read.8.growth_<median, mean>` | how much slower a read gets while another thread converts other pages |
//!
//! All are quotients to the same access to a `GuestMemoryMmap` of three regions, which checks nothing but the bounds,
//! compiled from the same generic code. Both memories are memfds, mapped and touched in advance; addresses are random,
//! and the same for both.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
        figures.add(format!("{key}.{way}_ratio"), Sample::ratio(&guarded.nanoseconds, &plain.nanoseconds));
        figures.add(format!("{key}.{way}_ns"), Sample::of(guarded.nanoseconds.iter().copied()));
        figures.add(format!("{key}.{way}_plain_ns"), Sample::of(plain.nanoseconds.iter().copied()));
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
/// Quiet and busy stretches take turns. The median is of short rounds; the mean is of the reader's processor time, so
/// that it holds what conversions cost the reader, and not what other programs on the machine do.
fn growth(figures: &mut Figures, rounds: usize, subjects: &mut Subjects) -> Result<()> {
    /// Accesses of a short round.
    const SHORT: usize = 32;
    /// Rounds of all addresses in a stretch: some milliseconds.
    const STRETCH: usize = 200;
    let view = subjects.device.view("bench");
    let reads = addresses(&REGIONS, 8, PAGES);
    let (busy, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let stretches = (rounds / 50).max(4);
    let guards = subjects.device.guards().clone();
    let writer = &mut subjects.writer;
    let (mut medians, mut means) = (<[Vec<f64>; 2]>::default(), <[Vec<f64>; 2]>::default());
    let conversions = std::thread::scope(|scope| -> Result<u64> {
        let converter = scope.spawn(|| convert_while(writer, &guards, &busy, &done));
        for stretch in 0..2 * stretches {
            let now_busy = stretch % 2;
            busy.store(now_busy == 1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(200));
            let mut times = Vec::with_capacity(STRETCH * ADDRESSES / SHORT);
            let before = clock_gettime(ClockId::ThreadCPUTime);
            for _ in 0..STRETCH {
                for part in reads.chunks(SHORT) {
                    let start = Instant::now();
                    black_box(own_read_8(&view, part));
                    times.push(start.elapsed().as_nanos() as f64);
                }
            }
            let after = clock_gettime(ClockId::ThreadCPUTime);
            let spent = (after.tv_sec - before.tv_sec) as f64 * 1e9 + (after.tv_nsec - before.tv_nsec) as f64;
            medians[now_busy].push(Sample::of(times).median);
            means[now_busy].push(spent);
        }
        done.store(true, Ordering::Relaxed);
        converter.join().ok().context("the converter panicked")?
    })?;
    ensure!(conversions > 0, "no page was converted");
    figures.add("access.read.8.growth_median", Sample::ratio(&medians[1], &medians[0]));
    figures.add("access.read.8.growth_mean", Sample::ratio(&means[1], &means[0]));
    figures.add("access.read.8.growth_conversions", Sample::of([conversions as f64]));
    Ok(())
}

/// Converts pages that nobody reads to private and back while `busy`, until `done`. Returns how often.
fn convert_while(writer: &mut Writer, guards: &Guards, busy: &AtomicBool, done: &AtomicBool) -> Result<u64> {
    let mut numbers = Numbers::new();
    let (mut next, mut conversions) = (Instant::now(), 0);
    while !done.load(Ordering::Relaxed) {
        if Instant::now() < next {
            std::hint::spin_loop();
            continue;
        }
        next = Instant::now() + CONVERSION_INTERVAL;
        // The clock is watched in quiet times, too: only the conversions are to make the difference.
        if !busy.load(Ordering::Relaxed) {
            continue;
        }
        let page = numbers.below(CONVERTED / PAGE_SIZE);
        let range = PageRange::new(page, page + 1).context("a page")?;
        let quiesced = writer.revoke(range)?.quiesce(&WaitForGuards, guards, &mut |_| ControlFlow::Continue(()));
        writer.commit(quiesced.ok().context("nobody gives up")?);
        writer.share(range)?;
        conversions += 1;
    }
    Ok(conversions)
}
