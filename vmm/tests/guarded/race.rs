//! Devices read and write the very pages that are converted meanwhile, as fast as all of them can.
//!
//! Each page carries a generation. A page that becomes private is checked, then poisoned, as a discard would; a page
//! that becomes shared is checked for poison, then given the next generation. So these are found:
//!
//! * an access after the flip: a device reads poison, or finds at the end of its guard that its generation has gone, or
//!   the poison is not whole when the page comes back;
//! * a stale read: a device reads an older generation than was there when it began;
//! * a lost write: the page does not hold what a device wrote last.
//!
//! With a quiescer that waits for nothing, which is possible only here, the same race must be lost.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use hypervisor::{PAGE_SIZE, SharedMemory};
use vm_memory::{Bytes, GuestAddress, VolatileMemory, VolatileSlice};
use vmm::memory::guarded::{
    DeviceView, Guards, PageRange, PinnedMemory, Quiesce, Report, Revoked, WaitForGuards, Writer,
};

use crate::memory::{Memory, pages};

/// Few pages, so that devices and conversions meet on them.
const PAGES: usize = 8;

/// Threads of devices, and threads that convert: each of these has its own pages.
const DEVICES: usize = 2;
const CONVERTERS: usize = 2;

/// What a page holds after it was given back.
const POISON: u64 = u64::MAX;

/// Words of a page: its generation, how often each writer has written, a word that anybody writes to, and then the
/// generation in each.
const GENERATION: usize = 0;
const COUNTS: usize = 1;
const SCRATCH: usize = 15;
const FILL: usize = 16;
const WORDS: usize = (PAGE_SIZE / 8) as usize;

/// Those who count their writes: the devices, and the thread that completes what they pinned.
const WRITERS: usize = DEVICES + 1;

/// What is known about a page beside what it holds.
#[derive(Default)]
struct Known {
    /// The generation that is shared, or was last.
    published: AtomicU64,
    /// The last generation that was flipped to private.
    retired: AtomicU64,
    /// For each writer, the generation that it wrote to last, and how often: written under its guard.
    written: [Mutex<(u64, u64)>; WRITERS],
}

struct Race {
    guards: Arc<Guards>,
    backing: Arc<SharedMemory>,
    known: [Known; PAGES],
    stop: AtomicBool,
    violation: OnceLock<String>,
    conversions: AtomicU64,
    accesses: AtomicU64,
    refusals: AtomicU64,
}

/// How a race ended.
struct Outcome {
    violation: Option<String>,
    conversions: u64,
    accesses: u64,
    refusals: u64,
}

/// Waits for nothing, and sees nobody.
struct DoNothing;

impl Quiesce for DoNothing {
    fn is_quiet(&self, _guards: &Guards, _range: PageRange) -> bool {
        true
    }

    fn quiesce(&self, _guards: &Guards, _range: PageRange, _report: &mut Report<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * limit as u128) >> 64) as usize
    }
}

impl Race {
    fn run(how: &dyn Quiesce, time: Duration) -> Outcome {
        let Memory { device, writer, backing, .. } = Memory::new(&[(0, PAGES as u64, 0, true)]);
        let views: Vec<DeviceView> = (0..DEVICES).map(|_| device.view("device")).collect();
        let writer = Mutex::new(writer);
        let race = Self {
            guards: device.guards().clone(),
            backing,
            known: Default::default(),
            stop: AtomicBool::new(false),
            violation: OnceLock::new(),
            conversions: AtomicU64::new(0),
            accesses: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        };
        (0..PAGES).for_each(|page| race.publish(page));
        let (pins, pinned) = sync_channel(4);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (device, view) in views.into_iter().enumerate() {
                let (race, pins) = (&race, pins.clone());
                scope.spawn(move || race.be_device(device, &view, &pins));
            }
            drop(pins);
            scope.spawn(|| race.complete(pinned));
            for converter in 0..CONVERTERS {
                let (race, writer) = (&race, &writer);
                scope.spawn(move || race.convert(converter, writer, how));
            }
            while start.elapsed() < time && race.violation.get().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            race.stop.store(true, Ordering::SeqCst);
        });
        Outcome {
            violation: race.violation.into_inner(),
            conversions: race.conversions.into_inner(),
            accesses: race.accesses.into_inner(),
            refusals: race.refusals.into_inner(),
        }
    }

    fn violated(&self, what: String) {
        // The first one counts: what follows may follow from it.
        let _ = self.violation.set(what);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The words of a page, past all guards.
    fn words(&self, page: usize) -> VolatileSlice<'_> {
        let mapping = self.backing.mapping();
        mapping.get_slice(page * PAGE_SIZE as usize, PAGE_SIZE as usize).unwrap()
    }

    fn publish(&self, page: usize) {
        let generation = self.known[page].published.load(Ordering::SeqCst) + 1;
        let words = self.words(page);
        for word in 0..WORDS {
            let value = if word == GENERATION || word >= FILL { generation } else { 0 };
            store(&words, word, value);
        }
        self.known[page].published.store(generation, Ordering::SeqCst);
    }

    fn be_device(&self, device: usize, view: &DeviceView, pins: &SyncSender<(usize, u64, PinnedMemory)>) {
        let mut numbers = Numbers(device as u64 + 1);
        while !self.stopped() {
            let page = numbers.below(PAGES);
            let at = |word: usize| GuestAddress(page as u64 * PAGE_SIZE + word as u64 * 8);
            let before = self.known[page].published.load(Ordering::SeqCst);
            let done = match numbers.below(16) {
                0..5 => view.read_obj::<u64>(at(FILL + numbers.below(WORDS - FILL))).map(|generation| {
                    self.check_generation(page, before, generation);
                }),
                5..8 => {
                    let mut bytes = vec![0; PAGE_SIZE as usize - FILL * 8];
                    view.read_slice(&mut bytes, at(FILL)).map(|()| {
                        let words: Vec<u64> =
                            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
                        self.check_generation(page, before, words[0]);
                        if words.iter().any(|word| *word != words[0]) {
                            self.violated(format!("page {page} changed while it was read"));
                        }
                    })
                }
                8..10 => view.write_obj(device as u64, at(SCRATCH)),
                10..12 => Bytes::write_obj(view, device as u64, at(SCRATCH)),
                12..15 => view.window(at(0), PAGE_SIZE as usize).map(|window| {
                    self.use_guarded(device, page, before, &window.slice(), numbers.below(4) == 0);
                }),
                _ => view.pin(&[(at(0), PAGE_SIZE as usize)]).map(|pin| {
                    // A full queue takes no more: the pin ends here.
                    let _ = pins.try_send((page, before, pin));
                }),
            };
            match done {
                Ok(()) => self.accesses.fetch_add(1, Ordering::Relaxed),
                Err(_) => self.refusals.fetch_add(1, Ordering::Relaxed),
            };
        }
    }

    /// Completes what devices have pinned, on its own thread.
    fn complete(&self, pinned: Receiver<(usize, u64, PinnedMemory)>) {
        while let Ok((page, before, pin)) = pinned.recv() {
            self.use_guarded(DEVICES, page, before, &pin.slices().next().unwrap(), false);
        }
    }

    /// Reads and writes a page whose guard is held.
    fn use_guarded(&self, writer: usize, page: usize, before: u64, words: &VolatileSlice<'_>, slowly: bool) {
        let generation = load(words, GENERATION);
        self.check_generation(page, before, generation);
        let mut written = self.known[page].written[writer].lock().unwrap();
        let count = if written.0 == generation { written.1 } else { 0 };
        let found = load(words, COUNTS + writer);
        if found != count {
            self.violated(format!("page {page}: write {count} of generation {generation} was lost: {found}"));
        }
        if slowly {
            std::thread::yield_now();
        }
        store(words, COUNTS + writer, count + 1);
        *written = (generation, count + 1);
        if load(words, GENERATION) != generation || self.known[page].retired.load(Ordering::SeqCst) >= generation {
            self.violated(format!("page {page} was converted under a guard"));
        }
    }

    fn check_generation(&self, page: usize, before: u64, generation: u64) {
        if generation == POISON {
            self.violated(format!("page {page} was read after it was given back"));
        } else if generation < before {
            self.violated(format!("page {page}: a stale read of generation {generation}, after {before}"));
        }
    }

    fn convert(&self, converter: usize, writer: &Mutex<Writer>, how: &dyn Quiesce) {
        let mut numbers = Numbers(100 + converter as u64);
        let mut private = [false; PAGES];
        while !self.stopped() {
            let page = numbers.below(PAGES / CONVERTERS) * CONVERTERS + converter;
            let range = pages(page as u64, page as u64 + 1);
            if private[page] {
                let words = self.words(page);
                if (0..WORDS).any(|word| load(&words, word) != POISON) {
                    self.violated(format!("page {page} was written to after it was given back"));
                }
                self.publish(page);
                writer.lock().unwrap().share(range).unwrap();
            } else {
                let revoked = writer.lock().unwrap().revoke(range).unwrap();
                if numbers.below(8) == 0 {
                    writer.lock().unwrap().restore(revoked);
                    continue;
                }
                let wait = |revoked: Revoked| revoked.quiesce(how, &self.guards, &mut |_| ControlFlow::Continue(()));
                let quiesced = match numbers.below(2) {
                    0 => wait(revoked).unwrap(),
                    // At rest more often than not.
                    _ => revoked.try_quiesce(how, &self.guards).or_else(wait).unwrap(),
                };
                if numbers.below(8) == 0 {
                    writer.lock().unwrap().restore(quiesced);
                    continue;
                }
                self.retire(page);
                writer.lock().unwrap().commit(quiesced);
            }
            private[page] = !private[page];
            self.conversions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Checks what devices have left in a page, and gives it back.
    fn retire(&self, page: usize) {
        let known = &self.known[page];
        let generation = known.published.load(Ordering::SeqCst);
        let words = self.words(page);
        for (writer, written) in known.written.iter().enumerate() {
            let written = *written.lock().unwrap();
            let count = if written.0 == generation { written.1 } else { 0 };
            let found = load(&words, COUNTS + writer);
            if found != count {
                self.violated(format!("page {page}: writer {writer} wrote {count} times, the page says {found}"));
            }
        }
        known.retired.store(generation, Ordering::SeqCst);
        (0..WORDS).for_each(|word| store(&words, word, POISON));
    }
}

fn load(words: &VolatileSlice<'_>, word: usize) -> u64 {
    words.load(word * 8, Ordering::Relaxed).unwrap()
}

fn store(words: &VolatileSlice<'_>, word: usize, value: u64) {
    words.store(value, word * 8, Ordering::Relaxed).unwrap();
}

#[test]
fn no_device_touches_a_page_that_is_not_shared() {
    let outcome = Race::run(&WaitForGuards, Duration::from_secs(3));
    assert_eq!(outcome.violation, None);
    let Outcome { conversions, accesses, refusals, .. } = outcome;
    println!("{conversions} conversions, {accesses} accesses, {refusals} refusals");
    assert!(conversions > 100 && accesses > 1000 && refusals > 100, "nobody met anybody");
}

#[test]
fn without_waiting_for_guards_the_race_is_lost() {
    let outcome = Race::run(&DoNothing, Duration::from_secs(30));
    let violation = outcome.violation.expect("a race without quiescing that nobody lost");
    println!("after {} conversions and {} accesses: {violation}", outcome.conversions, outcome.accesses);
}
