//! How long conversions took: each large one is timed, and of small ones a sample that stands for all.

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{Private, Shared};

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
    let mut made = 0;
    for kind in [ConversionKind::Explicit, ConversionKind::Implicit] {
        let before = timed(&world);
        for round in 0..100 {
            let to = if round % 2 == 0 { Private } else { Shared };
            assert!(world.ram.convert(request(pages(0, 1), to, kind)).unwrap());
            made = round + 1;
            let counted = timed(&world) - before;
            assert!(counted <= made && made - counted < SAMPLE, "{counted} of {made}");
        }
    }
    assert_eq!(made, 100);
    assert!(world.ram.statistics().conversion_latency.sum_ns > 0);
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
