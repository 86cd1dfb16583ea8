//! Guest memory as the host sees it: a region with one or both backings, written and checked through the mapping of
//! the shared one.

use std::sync::Arc;

use anyhow::{Context, bail};
use hypervisor::model::allocated;
use hypervisor::{Backing, GpaRange, GuestMemfd, PAGE_SIZE, PageState, Region, SharedMemory, Slice, Vm};
use vm_memory::{Bytes, VolatileMemory};

use crate::pattern::Pattern;

/// A region of guest memory and the VM that it belongs to.
pub struct TestMemory {
    vm: Arc<dyn Vm>,
    slot: u32,
    range: GpaRange,
    shared: Arc<SharedMemory>,
    private: Option<Arc<GuestMemfd>>,
}

impl TestMemory {
    /// Adds a region with both backings in slot `slot`.
    pub fn with_both_backings(vm: &Arc<dyn Vm>, slot: u32, range: GpaRange) -> anyhow::Result<Self> {
        let private = vm.create_guest_memfd(range.len())?;
        Self::add(vm, slot, range, Some(private))
    }

    /// Adds a region without a guest_memfd in slot `slot`.
    pub fn without_guest_memfd(vm: &Arc<dyn Vm>, slot: u32, range: GpaRange) -> anyhow::Result<Self> {
        Self::add(vm, slot, range, None)
    }

    fn add(vm: &Arc<dyn Vm>, slot: u32, range: GpaRange, private: Option<Arc<GuestMemfd>>) -> anyhow::Result<Self> {
        let shared = Arc::new(SharedMemory::new("kvm-tests", range.len())?);
        let memory = Self { vm: vm.clone(), slot, range, shared, private };
        memory.add_region()?;
        Ok(memory)
    }

    /// Puts the region before the guest, as it was when it was made.
    pub fn add_region(&self) -> anyhow::Result<()> {
        let shared = Some(Slice { backing: self.shared.clone(), offset: 0 });
        let private = self.private.clone().map(|backing| Slice { backing, offset: 0 });
        let region = Region { range: self.range, shared, private };
        Ok(self.vm.add_region(self.slot, &region)?)
    }

    /// Takes the region away from the guest; the backings stay.
    pub fn remove_region(&self) -> anyhow::Result<()> {
        Ok(self.vm.remove_region(self.slot)?)
    }

    /// All of it.
    pub fn all(&self) -> GpaRange {
        self.range
    }

    /// `size` bytes at `offset` from its start.
    pub fn part(&self, offset: u64, size: u64) -> anyhow::Result<GpaRange> {
        let part = GpaRange::new(self.range.start() + offset, size)?;
        anyhow::ensure!(self.range.covers(part), "{part} is not in {}", self.range);
        Ok(part)
    }

    /// Its pages, one by one.
    pub fn pages(range: GpaRange) -> anyhow::Result<Vec<GpaRange>> {
        let page = |number| GpaRange::page_of(range.start() + number * PAGE_SIZE).context("a page of a range");
        (0..range.pages()).map(page).collect()
    }

    /// What lies before and behind a part of it.
    pub fn around(&self, part: GpaRange) -> anyhow::Result<Vec<GpaRange>> {
        let sides = [(self.range.start(), part.start()), (part.end(), self.range.end())];
        let sides = sides.into_iter().filter(|(start, end)| start < end);
        sides.map(|(start, end)| Ok(GpaRange::new(start, end - start)?)).collect()
    }

    /// Sets the attribute of a part of it.
    pub fn set(&self, part: GpaRange, state: PageState) -> anyhow::Result<()> {
        Ok(self.vm.set_attribute(part, state)?)
    }

    /// Gives back what is behind a part of it in this state.
    pub fn discard(&self, part: GpaRange, state: PageState) -> anyhow::Result<()> {
        Ok(self.vm.discard(&self.backing(state)?, part.start() - self.range.start(), part.len())?)
    }

    /// How many bytes of memory are behind it in this state. KVM does not tell that of private memory.
    pub fn held(&self, state: PageState) -> anyhow::Result<u64> {
        Ok(allocated(&self.backing(state)?)?.iter().map(|run| run.end - run.start).sum())
    }

    /// What is behind it in this state.
    pub fn backing(&self, state: PageState) -> anyhow::Result<Backing> {
        Ok(match state {
            PageState::Shared => Backing::Shared(self.shared.clone()),
            PageState::Private => Backing::Private(self.private.clone().context("there is no guest_memfd")?),
        })
    }

    /// The host writes a part of it.
    pub fn host_writes(&self, part: GpaRange, pattern: Pattern) -> anyhow::Result<()> {
        let offset = usize::try_from(part.start() - self.range.start())?;
        let mapping = self.shared.mapping().as_volatile_slice();
        Ok(mapping.write_slice(&pattern.bytes(part), offset)?)
    }

    /// The host sees this in a part of it, through its mapping.
    pub fn host_sees(&self, part: GpaRange, pattern: Pattern) -> anyhow::Result<()> {
        let offset = usize::try_from(part.start() - self.range.start())?;
        let mut found = vec![0; usize::try_from(part.len())?];
        self.shared.mapping().as_volatile_slice().read_slice(&mut found, offset)?;
        if let Some((address, word)) = pattern.first_difference(part, &found) {
            bail!("the host sees {word:#x} at {address:#x} of {part}, expected {:#x}", pattern.word(address));
        }
        Ok(())
    }
}
