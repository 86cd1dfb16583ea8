//! Random sequences: conversions of every kind, accesses of guest and devices, regions that come and go, failures. After
//! each step everything agrees.
//!
//! `UMBRA_CASES` sets the number of cases, `UMBRA_SEED` repeats a run whose seed was printed.

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::faults::Operation;
use hypervisor::{PAGE_SIZE, PageState};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::sequence::{Step, run};
use crate::world::Kind;

const MIB: u64 = 1 << 20;

fn state() -> impl Strategy<Value = PageState> {
    prop_oneof![Just(PageState::Shared), Just(PageState::Private)]
}

fn step(pages: usize) -> impl Strategy<Value = Step> {
    let page = 0..pages;
    // Mostly few pages, sometimes so many that their discard runs behind the reply.
    let count = prop_oneof![4 => 1..8usize, 1 => 1..pages];
    let kind = prop_oneof![Just(ConversionKind::Explicit), Just(ConversionKind::Implicit), Just(ConversionKind::Host)];
    let failing = prop_oneof![
        3 => Just(Operation::SetAttribute),
        1 => Just(Operation::DiscardShared),
        1 => Just(Operation::DiscardPrivate),
    ];
    let errno = prop::sample::select(vec![libc::ENOMEM, libc::EINTR, libc::EAGAIN, libc::EIO, libc::EINVAL]);
    prop_oneof![
        6 => (page.clone(), count.clone(), state(), kind)
            .prop_map(|(first, count, to, kind)| Step::Convert { first, count, to, kind }),
        4 => (page.clone(), state(), 1..=u64::MAX)
            .prop_map(|(page, access, word)| Step::GuestWrite { page, access, word }),
        2 => (page.clone(), state()).prop_map(|(page, access)| Step::GuestRead { page, access }),
        3 => (page.clone(), 1..=u64::MAX).prop_map(|(page, word)| Step::DeviceWrite { page, word }),
        2 => page.clone().prop_map(|page| Step::DeviceRead { page }),
        1 => (page.clone(), page, count, state())
            .prop_map(|(page, first, count, to)| Step::MoveRegion { page, first, count, to }),
        2 => (failing, errno, 0..3u64, prop_oneof![4 => 1..3u64, 1 => Just(u64::MAX)], 0..4u64).prop_map(
            |(operation, errno, after, times, partly)| Step::Fail { operation, errno, after, times, partly }
        ),
    ]
}

/// The seed of this run: a new one, unless one is asked for.
fn seed() -> [u8; 32] {
    let Ok(text) = std::env::var("UMBRA_SEED") else {
        let mut seed = [0; 32];
        for bytes in seed.chunks_mut(8) {
            let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
            bytes.copy_from_slice(&random.to_ne_bytes());
        }
        return seed;
    };
    assert_eq!(text.len(), 64, "UMBRA_SEED has 64 hexadecimal digits");
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("UMBRA_SEED is hexadecimal"))
}

fn everything_agrees_after_each_step(kind: Kind, size: u64, pages: &[u64]) {
    let cases = std::env::var("UMBRA_CASES").map_or(2500, |cases| cases.parse().expect("UMBRA_CASES is a number"));
    let seed = seed();
    let digits: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{kind:?}: {cases} cases; repeat them with UMBRA_SEED={digits}");
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let steps = prop::collection::vec(step(pages.len()), 1..24);
    let result = runner.run(&steps, |steps| {
        run(kind, size, pages, &steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}\nrepeat it with UMBRA_SEED={digits}");
    }
}

/// All pages of a small guest.
fn small() -> (u64, Vec<u64>) {
    let size = MIB + 48 * PAGE_SIZE;
    (size, (0..size).step_by(PAGE_SIZE as usize).collect())
}

#[test]
fn software() {
    let (size, pages) = small();
    everything_agrees_after_each_step(Kind::Software, size, &pages);
}

/// The pages on both sides of the hole below 4 GiB, which most ranges span.
#[test]
fn software_around_the_hole() {
    let size = (3 << 30) + MIB;
    let page = PAGE_SIZE as usize;
    let below = ((3u64 << 30) - 64 * PAGE_SIZE..3 << 30).step_by(page);
    let above = ((4u64 << 30)..(4 << 30) + 64 * PAGE_SIZE).step_by(page);
    everything_agrees_after_each_step(Kind::Software, size, &below.chain(above).collect::<Vec<_>>());
}

#[test]
fn sw_protected_with_one_alias() {
    let (size, pages) = small();
    everything_agrees_after_each_step(Kind::SwProtected, size, &pages);
}

#[test]
fn sev_snp_with_one_alias() {
    let (size, pages) = small();
    everything_agrees_after_each_step(Kind::SevSnp, size, &pages);
}

#[test]
fn tdx_with_one_alias() {
    let (size, pages) = small();
    everything_agrees_after_each_step(Kind::Tdx, size, &pages);
}
