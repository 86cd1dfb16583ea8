//! What changes nothing is no matter of policy, whenever the policy changes.

use std::sync::atomic::{AtomicU32, Ordering};

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::PageState::Shared;
use vmm::memory::RamOptions;
use vmm::memory::conversion::{Policy, Rule};

use crate::world::{Kind, World, pages, request};

const BASE: u64 = 1 << 20;

/// How often the policy changes meanwhile. When it was asked twice about a request, one was refused in some hundred thousand
/// changes: this finds it, though not surely. What passes passes always.
const CHANGES: u32 = 500_000;

/// Counts what it should when it goes, be it by a panic: the other thread waits for it.
struct Counted<'a>(&'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.store(CHANGES, Ordering::Relaxed);
    }
}

#[test]
fn what_changes_nothing_is_refused_at_no_moment_of_a_change() {
    let world = World::with(Kind::SevSnp, 2 << 20, RamOptions::default());
    let (ram, changes) = (&world.ram, &AtomicU32::new(0));
    let refuse = Policy { explicit: Rule::Refuse, implicit: Rule::Refuse, host: Rule::Refuse };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while changes.load(Ordering::Relaxed) < CHANGES {
                ram.set_policy(refuse);
                ram.set_policy(Policy::default());
                changes.fetch_add(2, Ordering::Relaxed);
            }
        });
        let _counted = Counted(changes);
        while changes.load(Ordering::Relaxed) < CHANGES {
            for kind in [ConversionKind::Explicit, ConversionKind::Implicit, ConversionKind::Host] {
                let changed = ram.convert(request(pages(BASE, 1), Shared, kind));
                assert!(matches!(changed, Ok(false)), "{kind:?}: {changed:?}");
            }
        }
    });
    assert_eq!(world.ram.statistics().conversions_failed, 0);
}
