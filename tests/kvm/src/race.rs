//! Devices, vCPUs and the host race for pages, and every access is checked.
//!
//! Each page has an *epoch*, a number that grows each time it is converted to private, while nobody else can be at it. What
//! is written to the page carries the epoch:
//!
//! * Device threads hold a window on a page, read the epoch, and read and write words that only they use. Under a window
//!   the epoch stands still, so a word of another epoch is a *stale read*, and a word that is not the one they wrote last
//!   in this epoch is a *lost write*.
//! * vCPU threads and host threads convert a page to private, look whether its shared side has memory, let the guest write
//!   and check its private side, look again, and convert it back. Memory on the shared side of a private page is an *access
//!   after the flip*.
//!
//! The first violation ends the race.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
use hypervisor::model::allocated;
use hypervisor::observed::ObservedVm;
use hypervisor::{Backing, GpaRange, PAGE_SIZE, PageState};
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::GuestRam;
use vmm::memory::guarded::DeviceView;

use crate::guest::Guest;
use crate::pattern::{LINE, Pattern};

/// Who takes part.
pub struct Race<'a> {
    /// The memory.
    pub ram: &'a GuestRam,
    /// Its backings.
    pub vm: &'a ObservedVm,
    /// The pages that are raced for.
    pub pages: GpaRange,
    /// How many device threads.
    pub devices: usize,
    /// How many host threads.
    pub hosts: usize,
    /// How long.
    pub duration: Duration,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Accesses of devices that were let in.
    pub accesses: u64,
    /// Accesses that were refused.
    pub refused: u64,
    /// Conversions to private and back.
    pub conversions: u64,
}

struct Page {
    gpa: GpaRange,
    /// Held by whoever converts the page, since it knows what is in it.
    converter: Mutex<()>,
    epoch: AtomicU32,
}

struct State {
    pages: Vec<Page>,
    end: AtomicBool,
    accesses: AtomicU64,
    refused: AtomicU64,
    conversions: AtomicU64,
}

impl Race<'_> {
    /// Runs it, with a thread for each of these guests.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&self, guests: Vec<Box<dyn Guest>>) -> anyhow::Result<Tally> {
        let pages = (0..self.pages.pages())
            .map(|number| {
                let gpa = GpaRange::page_of(self.pages.start() + number * PAGE_SIZE)?;
                Ok(Page { gpa, converter: Mutex::new(()), epoch: AtomicU32::new(1) })
            })
            .collect::<anyhow::Result<_>>()?;
        let state = Arc::new(State {
            pages,
            end: AtomicBool::new(false),
            accesses: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            conversions: AtomicU64::new(0),
        });
        let deadline = Instant::now() + self.duration;
        let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
            let state = &*state;
            let mut threads = Vec::new();
            for number in 0..self.devices {
                let mut device = Device::new(number, self.ram.devices().view(&format!("device {number}")), state);
                threads.push(scope.spawn(move || state.until_end(deadline, move || device.access(state))));
            }
            for guest in guests {
                threads.push(scope.spawn(move || {
                    let mut converter = Converter { race: self, guest: Some(guest), random: Random::new() };
                    state.until_end(deadline, move || converter.cycle(state))
                }));
            }
            for _ in 0..self.hosts {
                threads.push(scope.spawn(move || {
                    let mut converter = Converter { race: self, guest: None, random: Random::new() };
                    state.until_end(deadline, move || converter.cycle(state))
                }));
            }
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect()
        });
        results.into_iter().collect::<anyhow::Result<()>>()?;
        Ok(Tally {
            accesses: state.accesses.load(Ordering::Relaxed),
            refused: state.refused.load(Ordering::Relaxed),
            conversions: state.conversions.load(Ordering::Relaxed),
        })
    }
}

impl State {
    /// Does this over and over, until the time is up or anybody found a violation.
    fn until_end(&self, deadline: Instant, mut step: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        while !self.end.load(Ordering::Relaxed) && Instant::now() < deadline {
            if let Err(error) = step() {
                self.end.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A device thread.
struct Device {
    view: DeviceView,
    /// Where in each page its word lies: lines begin with the guest's word.
    offset: u64,
    /// What it wrote last to each page, and in which epoch.
    written: Vec<(u32, u32)>,
    counter: u32,
    random: Random,
}

impl Device {
    fn new(number: usize, view: DeviceView, state: &State) -> Self {
        let written = vec![(0, 0); state.pages.len()];
        Self { view, offset: number as u64 * LINE + 8, written, counter: 0, random: Random::new() }
    }

    fn access(&mut self, state: &State) -> anyhow::Result<()> {
        let number = self.random.below(state.pages.len());
        let page = &state.pages[number];
        let at = GuestAddress(page.gpa.start() + self.offset);
        let Ok(window) = self.view.window(at, 8) else {
            state.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        state.accesses.fetch_add(1, Ordering::Relaxed);
        let epoch = page.epoch.load(Ordering::Acquire);
        let word: u64 = window.read_obj(at)?;
        let (found_epoch, found) = ((word >> 32) as u32, word as u32);
        ensure!(word == 0 || found_epoch == epoch, "stale read: {word:#x} at {:#x} in epoch {epoch}", at.0);
        let (written_in, written) = self.written[number];
        if written_in == epoch {
            ensure!(found == written, "lost write: {written:#x} was written to {:#x}, which holds {word:#x}", at.0);
        }
        // Some linger, so that conversions find them there.
        for _ in 0..self.random.below(200) {
            std::hint::spin_loop();
        }
        self.counter = self.counter.wrapping_add(1).max(1);
        window.write_obj(u64::from(epoch) << 32 | u64::from(self.counter), at)?;
        self.written[number] = (epoch, self.counter);
        Ok(())
    }
}

/// A thread that converts pages: a vCPU's, with a guest that uses them, or the host's.
struct Converter<'a> {
    race: &'a Race<'a>,
    guest: Option<Box<dyn Guest>>,
    random: Random,
}

impl Converter<'_> {
    fn cycle(&mut self, state: &State) -> anyhow::Result<()> {
        let page = &state.pages[self.random.below(state.pages.len())];
        let Ok(_converter) = page.converter.try_lock() else { return Ok(()) };
        self.convert(page, PageState::Private)?;
        let epoch = page.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        self.is_left(page).context("right after the flip")?;
        if let Some(guest) = &mut self.guest {
            let secret = Pattern::everywhere(!epoch);
            guest.sees(page.gpa, Pattern::ZEROS)?.done().context("stale bytes on the private side")?;
            guest.writes(page.gpa, secret)?.done()?;
            guest.sees(page.gpa, secret)?.done().context("somebody wrote to the private side")?;
        } else {
            std::thread::yield_now();
        }
        self.is_left(page).context("some time after the flip")?;
        self.convert(page, PageState::Shared)?;
        if let Some(guest) = &mut self.guest {
            // Devices write other words of the page meanwhile.
            let open = Pattern::everywhere(epoch);
            guest.sees(page.gpa, Pattern::ZEROS)?.done().context("stale bytes on the shared side")?;
            guest.writes(page.gpa, open)?.done()?;
            guest.sees(page.gpa, open)?.done().context("lost write of the guest's")?;
        }
        state.conversions.fetch_add(2, Ordering::Relaxed);
        Ok(())
    }

    fn convert(&self, page: &Page, to: PageState) -> anyhow::Result<()> {
        let (kind, origin) = match self.guest {
            Some(_) => (ConversionKind::Explicit, Origin::MapGpaRange),
            None => (ConversionKind::Host, Origin::Host),
        };
        let changed = self.race.ram.convert(ConversionRequest { range: page.gpa, to, kind, origin })?;
        ensure!(changed, "{} was {to} already, and nobody else converts it", page.gpa);
        Ok(())
    }

    /// The shared side of a private page has no memory: whoever touched it would have given it some.
    fn is_left(&self, page: &Page) -> anyhow::Result<()> {
        let (ram, ..) = self.race.ram.layout().locate(page.gpa.start()).context("the page is RAM")?;
        let offset = ram.backing_offset(page.gpa.start());
        let shared = self.race.vm.shared().context("there is shared memory")?;
        let touched = allocated(&Backing::Shared(shared))?.iter().any(|run| run.contains(&offset));
        ensure!(!touched, "access after the flip: the shared side of {} has memory", page.gpa);
        Ok(())
    }
}

/// Pages in no order that anybody could rely on.
struct Random(u64);

impl Random {
    fn new() -> Self {
        use std::hash::BuildHasher;
        Self(std::hash::RandomState::new().hash_one(0) | 1)
    }

    /// A number below `limit` (G. Marsaglia, "Xorshift RNGs").
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
