//! Several threads convert ranges that overlap, both ways, while devices write and calls fail; afterwards everything agrees.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hypervisor::PageState::{Private, Shared};
use hypervisor::faults::{Failure, Operation};
use hypervisor::{PAGE_SIZE, PageState};
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::RamOptions;

use crate::world::{Kind, World, host, pages};

const MIB: u64 = 1 << 20;
const PAGES: u64 = 8 * MIB / PAGE_SIZE;
const DURATION: Duration = Duration::from_secs(2);

/// Numbers below a limit, in no order that anything could rely on (G. Marsaglia, "Xorshift RNGs").
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |limit| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    }
}

fn storm(options: RamOptions, failing: bool) {
    let world = World::with(Kind::SevSnp, PAGES * PAGE_SIZE, options);
    let (end, requests) = (AtomicBool::new(false), AtomicU64::new(0));
    let running = || !end.load(Ordering::Relaxed);
    let (ram, faults) = (&world.ram, &world.faults);
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            let (running, requests) = (&running, &requests);
            scope.spawn(move || {
                let mut random = random(thread);
                while running() {
                    let count = if random(4) == 0 { 1 + random(900) } else { 1 + random(8) };
                    let range = pages(random(PAGES - count) * PAGE_SIZE, count);
                    let to = if random(2) == 0 { Shared } else { Private };
                    if let Err(error) = ram.convert(host(range, to)) {
                        assert!(failing && !error.is_fatal(), "{error:?}");
                    }
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for thread in 1..=2 {
            let running = &running;
            scope.spawn(move || {
                let (view, mut random) = (ram.devices().view("device"), random(77 + thread));
                while running() {
                    let at = GuestAddress(random(PAGES) * PAGE_SIZE);
                    if let Ok(window) = view.window(at, 8) {
                        window.write_obj(at.0, at).unwrap();
                        (0..random(100)).for_each(|_| std::hint::spin_loop());
                    }
                }
            });
        }
        let start = Instant::now();
        for turn in 0.. {
            if start.elapsed() > DURATION {
                break;
            }
            if failing {
                let operation =
                    [Operation::SetAttribute, Operation::DiscardShared, Operation::DiscardPrivate][turn % 3];
                faults.fail(operation, Failure::new([libc::ENOMEM, libc::EIO][turn % 2]));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        end.store(true, Ordering::Relaxed);
    });
    faults.clear();
    assert!(requests.load(Ordering::Relaxed) > 100, "{requests:?}");
    settles(&world);
    check(&world);
}

/// What is owed is given back by itself.
fn settles(world: &World) {
    let start = Instant::now();
    while world.ram.statistics().discard_backlog_bytes > 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", world.ram.statistics());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn check(world: &World) {
    let allocated = [Shared, Private].map(|side| world.allocated(side));
    let has_memory = |side: PageState, gpa: u64| {
        allocated[usize::from(side == Private)].iter().any(|run| run.contains(&world.offset(gpa)))
    };
    let mut private = 0;
    for page in 0..PAGES {
        let gpa = page * PAGE_SIZE;
        let state = world.state(gpa);
        assert_eq!(world.attribute(gpa), Some(state), "{gpa:#x}");
        assert!(!has_memory(state.other(), gpa), "the side that {gpa:#x} left has memory");
        private += u64::from(state == Private) * PAGE_SIZE;
    }
    let statistics = world.ram.statistics();
    assert_eq!((statistics.private_bytes, statistics.converting_bytes), (private, 0));
}

#[test]
fn overlapping_conversions_agree_in_the_end() {
    storm(RamOptions { discard_backlog: Some(MIB), ..RamOptions::default() }, false);
}

#[test]
fn overlapping_conversions_agree_although_calls_fail() {
    storm(RamOptions { discard_backlog: Some(MIB), ..RamOptions::default() }, true);
}

#[test]
fn overlapping_conversions_agree_with_huge_pages() {
    let options = RamOptions { discard_backlog: Some(MIB), huge_page_size: Some(2 * MIB), ..RamOptions::default() };
    storm(options, true);
}
