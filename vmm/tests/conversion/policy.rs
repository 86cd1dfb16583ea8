//! Policy: what is refused changes nothing, what is limited waits, and each kind has its own rule.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{Private, Shared};
use vmm::memory::conversion::{Policy, Rule};
use vmm::memory::{ConversionError, RamOptions};

use crate::world::{Kind, World, pages, request};

const BASE: u64 = 1 << 20;
const SIZE: u64 = 2 << 20;
const KINDS: [ConversionKind; 3] = [ConversionKind::Explicit, ConversionKind::Implicit, ConversionKind::Host];

fn only(kind: ConversionKind, rule: Rule) -> Policy {
    let mut policy = Policy::default();
    match kind {
        ConversionKind::Explicit => policy.explicit = rule,
        ConversionKind::Implicit => policy.implicit = rule,
        ConversionKind::Host => policy.host = rule,
    }
    policy
}

#[test]
fn a_refused_kind_changes_nothing_and_the_others_go_on() {
    for refused in KINDS {
        let options = RamOptions { policy: only(refused, Rule::Refuse), ..RamOptions::default() };
        let world = World::with(Kind::SevSnp, SIZE, options);
        for (kind, page) in KINDS.into_iter().zip(0..) {
            let range = pages(BASE + page * PAGE_SIZE, 1);
            let result = world.ram.convert(request(range, Private, kind));
            if kind == refused {
                let error = result.unwrap_err();
                assert!(matches!(error, ConversionError::Refused { .. }) && !error.is_fatal(), "{error:?}");
                assert_eq!(world.state(range.start()), Shared);
                // What changes nothing is no conversion.
                world.ram.convert(request(range, Shared, kind)).unwrap();
            } else {
                result.unwrap();
                assert_eq!(world.state(range.start()), Private);
            }
        }
        assert_eq!(world.ram.statistics().conversions_failed, 1);
        // From the next request on.
        world.ram.set_policy(Policy::default());
        world.ram.convert(request(pages(BASE, 3), Private, refused)).unwrap();
        assert_eq!(world.ram.policy(), Policy::default());
    }
}

#[test]
fn the_launch_is_no_matter_of_policy() {
    let options = RamOptions { policy: only(ConversionKind::Host, Rule::Refuse), ..RamOptions::default() };
    let world = World::with(Kind::Software, SIZE, options);
    world.ram.make_all_private().unwrap();
    assert_eq!(world.ram.statistics().private_bytes, SIZE);
}

#[test]
fn a_refused_access_is_a_general_protection_fault() {
    for kind in [Kind::SevSnp, Kind::Tdx] {
        let options = RamOptions { policy: only(ConversionKind::Implicit, Rule::Refuse), ..RamOptions::default() };
        let mut world = World::with(kind, SIZE, options);
        let error = world.guest_writes(BASE, Private, 1).unwrap_err();
        assert!(matches!(error, ConversionError::Refused { kind: ConversionKind::Implicit }));
        assert_eq!(world.state(BASE), Shared);
        // The guest runs on.
        world.guest_writes(BASE, Shared, 1).unwrap();
        assert_eq!(world.device_reads(BASE).unwrap(), 1);
    }
}

#[test]
fn memory_that_is_shared_for_good_stays_so() {
    let vm = hypervisor::model::ModelHypervisor::new().create(hypervisor::VmType::Default).unwrap();
    let layout = arch::x86_64::MemoryLayout::new(arch::x86_64::Isolation::None, SIZE, 46).unwrap();
    let ram = vmm::memory::GuestRam::new(vm, layout, RamOptions::default()).unwrap();
    let (view, at) = (ram.devices().view("device"), vm_memory::GuestAddress(BASE));
    view.write_obj(7u64, at).unwrap();
    for kind in KINDS {
        let error = ram.convert(request(pages(BASE, 1), Private, kind)).unwrap_err();
        assert!(matches!(error, ConversionError::NotConvertible { .. }) && !error.is_fatal(), "{error:?}");
        assert!(!ram.convert(request(pages(BASE, 1), Shared, kind)).unwrap());
    }
    assert_eq!(view.read_obj::<u64>(at).unwrap(), 7);
}

#[test]
fn a_limit_delays_and_does_not_refuse() {
    let rule = Rule::Limit { per_second: NonZeroU32::new(20).unwrap() };
    let options = RamOptions { policy: only(ConversionKind::Explicit, rule), ..RamOptions::default() };
    let world = World::with(Kind::SevSnp, SIZE, options);
    let start = Instant::now();
    for page in 0..5 {
        world.ram.convert(request(pages(BASE + page * PAGE_SIZE, 1), Private, ConversionKind::Explicit)).unwrap();
    }
    // The first goes at once, the other four each 50 ms later.
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    assert_eq!(world.ram.statistics().conversions_explicit, 5);
}

#[test]
fn a_machine_that_ends_waits_for_no_turn() {
    let rule = Rule::Limit { per_second: NonZeroU32::MIN };
    let options = RamOptions { policy: only(ConversionKind::Explicit, rule), ..RamOptions::default() };
    let world = World::with(Kind::SevSnp, SIZE, options);
    let convert =
        |page| world.ram.convert(request(pages(BASE + page * PAGE_SIZE, 1), Private, ConversionKind::Explicit));
    // Turns up to ten seconds ahead are taken.
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..10).map(|page| scope.spawn(move || convert(page))).collect();
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        world.ram.end_conversions();
        let stopped = waiting.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_err);
        assert!(stopped.count() >= 8);
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn whoever_waits_follows_a_policy_that_changes() {
    let rule = Rule::Limit { per_second: NonZeroU32::MIN };
    for (after, fine) in [(Rule::Allow, true), (Rule::Refuse, false)] {
        let options = RamOptions { policy: only(ConversionKind::Host, rule), ..RamOptions::default() };
        let world = World::with(Kind::SevSnp, SIZE, options);
        let convert =
            |page| world.ram.convert(request(pages(BASE + page * PAGE_SIZE, 1), Private, ConversionKind::Host));
        convert(0).unwrap();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (1..60).map(|page| scope.spawn(move || convert(page))).collect();
            // Turns up to a minute ahead are taken.
            std::thread::sleep(Duration::from_millis(100));
            let start = Instant::now();
            world.ram.set_policy(only(ConversionKind::Host, after));
            let done = waiting.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_ok).count();
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
            assert!(if fine { done == 59 } else { done <= 2 }, "{done}");
        });
        // Nor do those that waited hold up who comes later.
        world.ram.set_policy(only(ConversionKind::Host, rule));
        assert!(world.ram.convert(request(pages(BASE + 100 * PAGE_SIZE, 1), Private, ConversionKind::Host)).unwrap());
    }
}
