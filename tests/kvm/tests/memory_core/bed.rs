//! A VM whose memory is the product's, and what tests do to it.

use std::sync::Arc;

use anyhow::Context;
use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::model::allocated;
use hypervisor::observed::ObservedVm;
use hypervisor::{Backing, GpaRange, PAGE_SIZE, PageState};
use kvm_tests::backend::{Backend, TestVm};
use kvm_tests::guest::Guest;
use vmm::memory::{ConversionError, GuestRam, RamOptions};

/// Slots of guests' code, behind all that memory takes.
const GUEST_SLOT: u32 = 16;

/// The VM.
pub struct Bed {
    pub vm: Arc<ObservedVm>,
    pub ram: Arc<GuestRam>,
    test_vm: TestVm,
}

impl Bed {
    /// One alias with both backings, whose attribute follows the state.
    pub fn one_alias(backend: &Backend, size: u64, options: RamOptions) -> anyhow::Result<Self> {
        Self::new(backend, MemoryLayout::one_alias(size, 40)?, options)
    }

    /// The two aliases of `software`. Guests of 32 bits reach the shared one.
    pub fn software(backend: &Backend, size: u64, options: RamOptions) -> anyhow::Result<Self> {
        Self::new(backend, MemoryLayout::new(Isolation::Software, size, 40)?, options)
    }

    fn new(backend: &Backend, layout: MemoryLayout, options: RamOptions) -> anyhow::Result<Self> {
        let test_vm = backend.create_private_vm()?;
        let vm = ObservedVm::new(test_vm.vm().clone());
        let ram = Arc::new(GuestRam::new(vm.clone(), layout, options)?);
        Ok(Self { vm, ram, test_vm })
    }

    /// A guest with vCPU `id`.
    pub fn guest(&self, id: u8) -> anyhow::Result<Box<dyn Guest>> {
        self.test_vm.guest(GUEST_SLOT + u32::from(id), id)
    }

    /// The operator converts a range. Returns whether any page changed.
    pub fn convert(&self, range: GpaRange, to: PageState) -> Result<bool, ConversionError> {
        let (kind, origin) = (ConversionKind::Host, Origin::Host);
        self.ram.convert(ConversionRequest { range, to, kind, origin })
    }

    /// The state of a page by the map.
    pub fn state(&self, gpa: u64) -> Option<PageState> {
        let (ram, _, own) = self.ram.layout().locate(gpa)?;
        self.ram.devices().guards().plane().state(ram.backing_offset(own) / PAGE_SIZE)
    }

    /// Whether the shared side of a page has memory of the host's.
    pub fn has_shared_memory(&self, gpa: u64) -> anyhow::Result<bool> {
        let offset = self.ram.layout().locate(gpa).map(|(ram, _, own)| ram.backing_offset(own));
        let shared = self.vm.shared().context("there is shared memory")?;
        let runs = allocated(&Backing::Shared(shared))?;
        Ok(offset.is_some_and(|offset| runs.iter().any(|run| run.contains(&offset))))
    }
}

/// So many pages from an address on.
pub fn pages(start: u64, count: u64) -> anyhow::Result<GpaRange> {
    Ok(GpaRange::new(start, count * PAGE_SIZE)?)
}
