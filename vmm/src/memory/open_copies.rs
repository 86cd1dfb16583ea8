//! Shared memory that stays open to the guest whatever the state of its pages: low memory, where processors start.
//!
//! A processor that starts leaves a copy of private low memory there. Nobody needs it once the processor is up.
//!
//! Guarantee: what is given back here is gone, or is owed like any other discard that failed, or is told to remain. Only
//! a guest that converts these very pages all the while makes any remain, and the copy that it so keeps is its own.

use hypervisor::PageState;

use super::GuestRam;
use super::guarded::PageRange;

/// How often discards that are under way are waited for.
const ATTEMPTS: u32 = 16;

/// Pages that may hold such a copy still.
#[must_use = "what remains is to be given back later"]
#[derive(Debug, Default)]
pub(crate) struct OpenCopies(Vec<PageRange>);

impl OpenCopies {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl GuestRam {
    /// All pages that may hold a copy.
    pub(crate) fn open_copies(&self) -> OpenCopies {
        let open = self.layout.ranges().iter().filter(|ram| ram.shared_stays_open());
        OpenCopies(open.filter_map(|ram| PageRange::touched(ram.offset, ram.gpa.len())).collect())
    }

    /// Gives back the open shared memory of those of these pages that are private. Returns those that remain.
    ///
    /// A discard that fails is tried again by whoever gives back memory next, like any other.
    pub(crate) fn discard_open_copies(&self, mut copies: OpenCopies) -> OpenCopies {
        for _ in 0..ATTEMPTS {
            copies = self.try_discard_open_copies(&copies);
            if copies.is_empty() {
                break;
            }
            for pages in &copies.0 {
                // A failure is told where it happens.
                let _ = self.discards.settle_all_in(*pages, || self.is_ending());
            }
        }
        copies
    }

    /// The same, and waits for nobody.
    pub(crate) fn try_discard_open_copies(&self, copies: &OpenCopies) -> OpenCopies {
        let (mut debts, mut busy) = (Vec::new(), Vec::new());
        // Owed under the lock that publishes states, so that nobody shares the pages before they are given back.
        let ledger = self.ledger();
        for pages in &copies.0 {
            for run in ledger.writer.runs(*pages).filter(|run| run.state == PageState::Private) {
                debts.extend(self.discards.owe_rest(run.pages, &mut busy));
            }
        }
        drop(ledger);
        debts.into_iter().for_each(|debt| self.discards.settle_now(debt));
        OpenCopies(busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RamOptions;
    use crate::memory::discards::Discards;
    use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
    use arch::x86_64::{Isolation, MemoryLayout};
    use hypervisor::faults::{Failure, Operation};
    use hypervisor::model::ModelHypervisor;
    use hypervisor::{GpaRange, VmType};
    use vm_memory::{Bytes, VolatileMemory};

    const PAGE: u64 = 4096;
    const COPY: u8 = 7;

    /// A guest with a copy in all of its open memory, and how many of its pages there are.
    fn guest(hypervisor: &ModelHypervisor) -> (GuestRam, u64) {
        let vm = hypervisor.create(VmType::SwProtected).unwrap();
        let layout = MemoryLayout::new(Isolation::Software, 4 << 20, 48).unwrap();
        let ram = GuestRam::new(vm, layout, RamOptions::default()).unwrap();
        ram.make_all_private().unwrap();
        let pages: Vec<_> = ram.open_copies().0;
        for pages in &pages {
            let copy = vec![COPY; pages.bytes() as usize];
            ram.shared.mapping().as_volatile_slice().write_slice(&copy, pages.offset() as usize).unwrap();
        }
        let count = pages.iter().map(|pages| pages.count()).sum();
        assert!(count > 16);
        (ram, count)
    }

    /// Which pages hold a copy.
    fn copies(ram: &GuestRam) -> Vec<u64> {
        let byte = |page: u64| ram.shared.mapping().as_volatile_slice().read_obj::<u8>((page * PAGE) as usize).unwrap();
        let pages = ram.open_copies().0;
        pages.iter().flat_map(|pages| pages.first()..pages.end()).filter(|page| byte(*page) == COPY).collect()
    }

    #[test]
    fn a_discard_that_failed_keeps_its_own_pages_only_and_not_for_long() {
        let hypervisor = ModelHypervisor::new();
        let (ram, _) = guest(&hypervisor);
        let convert = |to| {
            let range = GpaRange::new(4 * PAGE, 2 * PAGE).unwrap();
            ram.convert(ConversionRequest { range, to, kind: ConversionKind::Host, origin: Origin::Host })
        };
        convert(PageState::Shared).unwrap();
        hypervisor.faults().fail(Operation::DiscardShared, Failure::new(libc::ENOMEM));
        convert(PageState::Private).unwrap();
        assert!(ram.discard_open_copies(ram.open_copies()).is_empty(), "what is owed is nobody else's business");
        let mut left = copies(&ram);
        assert!(left == [4, 5] || left.is_empty(), "{left:?}");
        let start = std::time::Instant::now();
        while !left.is_empty() {
            assert!(start.elapsed().as_secs() < 30, "nobody tries again");
            std::thread::sleep(std::time::Duration::from_millis(10));
            left = copies(&ram);
        }
    }

    #[test]
    fn a_copy_behind_a_discard_that_is_under_way_is_given_back_later() {
        // In the list, and being done at once.
        for owe in [Discards::owe, Discards::owe_for_good] {
            let (ram, count) = guest(&ModelHypervisor::new());
            // One that somebody holds may have done its work already.
            let pages = ram.open_copies().0[0];
            let held = PageRange::new(pages.first() + 2, pages.first() + 5).unwrap();
            let debt = owe(&ram.discards, held, PageState::Shared);
            let left = ram.try_discard_open_copies(&ram.open_copies());
            assert_eq!(left.0, [held]);
            assert_eq!(copies(&ram), (held.first()..held.end()).collect::<Vec<_>>(), "of {count}");
            ram.discards.forgive(debt);
            assert!(ram.try_discard_open_copies(&left).is_empty());
            assert!(copies(&ram).is_empty());
        }
    }
}
