//! Random sequences: conversions of every kind, accesses of guest and devices, regions that come and go, failures. After
//! each step everything agrees.
//!
//! `UMBRA_CASES` sets the number of cases, `UMBRA_SEED` repeats a run whose seed was printed.

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::faults::{Failure, Operation};
use hypervisor::model::Outcome;
use hypervisor::{GpaRange, PAGE_SIZE, PageState, Vm};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use vmm::memory::guarded::RefusedAccess;
use vmm::memory::{ConversionError, RamOptions};

use crate::reference::Reference;
use crate::world::{Kind, World, request};

const MIB: u64 = 1 << 20;

/// A step of a sequence. Pages are numbers in the list of pages that the test uses.
#[derive(Debug, Clone)]
enum Step {
    Convert {
        first: usize,
        count: usize,
        to: PageState,
        kind: ConversionKind,
    },
    GuestWrite {
        page: usize,
        access: PageState,
        word: u64,
    },
    GuestRead {
        page: usize,
        access: PageState,
    },
    DeviceWrite {
        page: usize,
        word: u64,
    },
    DeviceRead {
        page: usize,
    },
    /// A region goes and comes back; in between, a conversion.
    MoveRegion {
        page: usize,
        first: usize,
        count: usize,
        to: PageState,
    },
    Fail {
        operation: Operation,
        errno: i32,
        after: u64,
        times: u64,
        partly: u64,
    },
}

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

/// What a sequence is tried on.
struct Sequence {
    world: World,
    reference: Reference,
    pages: Vec<u64>,
}

/// What a step came to.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    /// An undo failed: the machine stops.
    Stopped,
}

impl Sequence {
    fn range(&self, first: usize, count: usize) -> GpaRange {
        let last = (first + count - 1).min(self.pages.len() - 1);
        let (start, end) = (self.pages[first], self.pages[last] + PAGE_SIZE);
        GpaRange::new(start, end - start).unwrap()
    }

    fn run(&mut self, step: &Step) -> Next {
        match *step {
            Step::Convert { first, count, to, kind } => {
                let range = self.range(first, count);
                let result = self.world.ram.convert(request(range, to, kind));
                return self.converted(range, to, result);
            }
            Step::GuestWrite { page, access, word } => {
                let (gpa, access) = self.reachable(page, access);
                let before = self.reference.0[&gpa].word;
                match self.world.guest_writes(gpa, access, word) {
                    Ok(outcome) => {
                        assert_eq!(outcome, Outcome::Written);
                        self.reference.convert(GpaRange::page_of(gpa).unwrap(), access);
                        self.reference.0.get_mut(&gpa).unwrap().word = word;
                    }
                    Err(error) => return self.refused(gpa, before, &error),
                }
            }
            Step::GuestRead { page, access } => {
                let (gpa, access) = self.reachable(page, access);
                let before = self.reference.0[&gpa].word;
                match self.world.guest_reads(gpa, access) {
                    Ok(outcome) => {
                        self.reference.convert(GpaRange::page_of(gpa).unwrap(), access);
                        let word = self.reference.0[&gpa].word;
                        assert_eq!(outcome, Outcome::Read(word.to_ne_bytes().into()));
                    }
                    Err(error) => return self.refused(gpa, before, &error),
                }
            }
            Step::DeviceWrite { page, word } => {
                let gpa = self.pages[page];
                let page = self.reference.0.get_mut(&gpa).unwrap();
                match self.world.device_writes(gpa, word) {
                    Ok(()) => {
                        assert_eq!(page.state, PageState::Shared, "a device wrote to a private page");
                        page.word = word;
                    }
                    Err(error) => {
                        assert_eq!(RefusedAccess::in_error(&error).unwrap().page, gpa);
                        assert!(page.state == PageState::Private || !self.is_for_devices(gpa), "{error}");
                    }
                }
            }
            Step::DeviceRead { page } => {
                let gpa = self.pages[page];
                let page = self.reference.0[&gpa];
                match self.world.device_reads(gpa) {
                    Ok(word) => assert_eq!((page.state, word), (PageState::Shared, page.word)),
                    Err(_) => assert!(page.state == PageState::Private || !self.is_for_devices(gpa)),
                }
            }
            Step::MoveRegion { page, first, count, to } => {
                let (ram, alias, _) = self.world.ram.layout().locate(self.pages[page]).unwrap();
                let (_, region) = self.world.vm.regions().into_iter().find(|(slot, _)| *slot == alias.slot).unwrap();
                assert_eq!(region.range.start(), ram.gpa.start());
                self.world.vm.remove_region(alias.slot).unwrap();
                let range = self.range(first, count);
                let result = self.world.ram.convert(request(range, to, ConversionKind::Host));
                let next = self.converted(range, to, result);
                self.world.vm.add_region(alias.slot, &region).unwrap();
                return next;
            }
            Step::Fail { operation, errno, after, times, partly } => {
                let failure = Failure::new(errno).after(after).partly(partly * PAGE_SIZE);
                let failure = if times == u64::MAX { failure.always() } else { failure.times(times) };
                self.world.faults.fail(operation, failure);
            }
        }
        Next::Go
    }

    /// How the guest may reach a page: with two aliases, the low pages' shared one is always open, and a stray touch of
    /// the private one is not this test's subject; with the attribute as the rule, there is no choice.
    fn reachable(&self, page: usize, access: PageState) -> (u64, PageState) {
        let gpa = self.pages[page];
        let state = self.reference.0[&gpa].state;
        let access = match self.world.kind {
            Kind::Software if access == PageState::Private || !self.is_for_devices(gpa) => state,
            Kind::SwProtected => state,
            _ => access,
        };
        (gpa, access)
    }

    fn is_for_devices(&self, gpa: u64) -> bool {
        self.world.ram.layout().locate(gpa).unwrap().0.devices
    }

    fn converted(&mut self, range: GpaRange, to: PageState, result: Result<(), ConversionError>) -> Next {
        match result {
            Ok(()) => self.reference.convert(range, to),
            Err(error) if error.is_fatal() => return Next::Stopped,
            Err(_) => {
                self.reference.convert_in_part(&self.world, range, to);
                // What was ordered may go on for ever, which says nothing new.
                self.world.faults.clear();
            }
        }
        Next::Go
    }

    /// An access that was refused touched nothing.
    fn refused(&mut self, gpa: u64, before: u64, error: &ConversionError) -> Next {
        if error.is_fatal() {
            return Next::Stopped;
        }
        assert_eq!(self.reference.0[&gpa].word, before);
        self.world.faults.clear();
        Next::Go
    }
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
        let world = World::with(kind, size, RamOptions { discard_backlog: Some(MIB), ..RamOptions::default() });
        let mut sequence = Sequence { world, reference: Reference::new(pages.iter().copied()), pages: pages.to_vec() };
        for step in &steps {
            if sequence.run(step) == Next::Stopped {
                // From here on nothing converts, and nothing pretends to.
                let range = sequence.range(0, pages.len());
                for to in [PageState::Shared, PageState::Private] {
                    let result = sequence.world.ram.convert(request(range, to, ConversionKind::Host));
                    prop_assert!(result.is_ok() || result.is_err_and(|error| error.is_fatal()));
                }
                return Ok(());
            }
            sequence.reference.check(&sequence.world);
        }
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
