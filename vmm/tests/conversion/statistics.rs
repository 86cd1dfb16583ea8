//! How long conversions took: each large one is timed, and of small ones a sample that stands for all.

use std::ops::ControlFlow;

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{Private, Shared};
use vmm::memory::RamOptions;
use vmm::memory::guarded::{Guards, PageRange, Quiesce, Report, WaitForGuards};

use crate::world::{Kind, World, pages, request};

const SIZE: u64 = 16 << 20;

/// One small conversion in so many is timed.
const SAMPLE: u64 = 16;

fn timed(world: &World) -> u64 {
    world.ram.statistics().conversion_latency.counts.iter().sum()
}

#[test]
fn small_conversions_are_sampled_and_the_sample_stands_for_all() {
    let world = World::new(Kind::SevSnp, SIZE);
    let mut large = 0;
    for made in 1..=400 {
        let kind = if made % 3 == 0 { ConversionKind::Implicit } else { ConversionKind::Explicit };
        let to = if made % 2 == 1 { Private } else { Shared };
        assert!(world.ram.convert(request(pages(0, 1), to, kind)).unwrap());
        let counted = timed(&world) - large;
        assert!(counted.abs_diff(made) < SAMPLE && (made > SAMPLE || counted == made), "{counted} of {made}");
        // What is large is no part of the sample, nor in its way.
        if made % 5 == 0 {
            let to = if made % 10 == 5 { Private } else { Shared };
            assert!(world.ram.convert(request(pages(SIZE / 2, 64), to, kind)).unwrap());
            large += 1;
        }
    }
    assert!(world.ram.statistics().conversion_latency.sum_ns > 0);
}

/// Waits for guards, and never finds out before that there are none.
struct AlwaysWait;

impl Quiesce for AlwaysWait {
    fn quiesce(&self, guards: &Guards, range: PageRange, report: &mut Report<'_>) -> ControlFlow<()> {
        WaitForGuards.quiesce(guards, range, report)
    }
}

#[test]
fn a_conversion_that_waits_is_timed_and_stands_for_itself() {
    let options = RamOptions { quiesce: Box::new(AlwaysWait), ..RamOptions::default() };
    let world = World::with(Kind::SevSnp, SIZE, options);
    for page in 0..4 * SAMPLE {
        assert_eq!(timed(&world), page);
        world.ram.convert(request(pages(page * PAGE_SIZE, 1), Private, ConversionKind::Explicit)).unwrap();
    }
}

#[test]
fn large_conversions_and_the_operators_are_all_timed() {
    let world = World::new(Kind::SevSnp, SIZE);
    for round in 1..=5 {
        let to = if round % 2 == 0 { Shared } else { Private };
        world.ram.convert(request(pages(0, 64), to, ConversionKind::Explicit)).unwrap();
        world.ram.convert(request(pages(SIZE / 2, 1), to, ConversionKind::Host)).unwrap();
        assert_eq!(timed(&world), 2 * round);
    }
    // What changes nothing is none.
    world.ram.convert(request(pages(0, 64), Private, ConversionKind::Explicit)).unwrap();
    assert_eq!(timed(&world), 10);
    assert_eq!(world.ram.statistics().private_bytes, 65 * PAGE_SIZE);
}
