//! A sequence of conversions, accesses, regions that come and go, and failures, tried on the model with everything compared
//! after each step. The property tests make sequences up, and so does the fuzz target `attributes`.

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::faults::{Failure, Operation};
use hypervisor::model::Outcome;
use hypervisor::{GpaRange, PAGE_SIZE, PageState, Vm};
use vmm::memory::guarded::RefusedAccess;
use vmm::memory::{ConversionError, RamOptions};

use crate::reference::Reference;
use crate::world::{Kind, World, request};

/// Bytes that discards may hold back.
const BACKLOG: u64 = 1 << 20;

/// A step of a sequence. Pages are numbers in the list of pages that the test uses.
#[derive(Debug, Clone)]
pub enum Step {
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

/// Tries a sequence on a guest of this size, with these pages.
///
/// # Panics
/// Where anything disagrees.
pub fn run(kind: Kind, size: u64, pages: &[u64], steps: &[Step]) {
    let world = World::with(kind, size, RamOptions { discard_backlog: Some(BACKLOG), ..RamOptions::default() });
    let mut sequence = Sequence { world, reference: Reference::new(pages.iter().copied()), pages: pages.to_vec() };
    for step in steps {
        if sequence.run(step) == Next::Stopped {
            // From here on nothing converts, and nothing pretends to.
            let range = sequence.range(0, pages.len());
            let results = [PageState::Shared, PageState::Private]
                .map(|to| sequence.world.ram.convert(request(range, to, ConversionKind::Host)));
            assert!(results.iter().all(|result| result.as_ref().is_ok_and(|changed| !changed)
                || result.as_ref().is_err_and(ConversionError::is_fatal)));
            assert!(results.iter().any(Result::is_err), "an inconsistent machine converts");
            return;
        }
        sequence.reference.check(&sequence.world);
    }
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

    fn converted(&mut self, range: GpaRange, to: PageState, result: Result<bool, ConversionError>) -> Next {
        match result {
            Ok(changed) => {
                let would_change = self.reference.0.range(range.start()..range.end()).any(|(_, page)| page.state != to);
                assert_eq!(changed, would_change);
                self.reference.convert(range, to);
            }
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
