//! A guest of the model's whose memory is [`GuestRam`], and a look at all of it.

use std::sync::{Arc, Mutex};

use arch::x86_64::memory_layout::AttributeRule;
use arch::x86_64::private_faults::{self, ConversionKind, ConversionRequest, Origin};
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::faults::Faults;
use hypervisor::model::{Action, ModelHypervisor, ModelVm, Outcome, Script};
use hypervisor::{Backing, Exit, GpaRange, GuestMemfd, PAGE_SIZE, PageState, SharedMemory, Vcpu, Vm, VmType};
use vm_memory::{Bytes, GuestAddress, VolatileMemory};
use vmm::memory::event::MemoryEvent;
use vmm::memory::guarded::{DeviceView, Run};
use vmm::memory::{ConversionError, GuestRam, RamOptions};

/// What makes the memory of the guest private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two aliases, and the guest's page tables choose.
    Software,
    /// One alias, and the attribute chooses.
    SwProtected,
    /// One alias, and the C-bit must agree with the attribute.
    SevSnp,
    /// One alias, and the shared bit of the address must agree with the attribute.
    Tdx,
}

/// A guest.
pub struct World {
    pub kind: Kind,
    pub vm: Arc<ModelVm>,
    pub faults: Faults,
    pub ram: Arc<GuestRam>,
    pub shared: Arc<SharedMemory>,
    pub private: Arc<GuestMemfd>,
    pub view: DeviceView,
    pub events: Arc<Mutex<Vec<String>>>,
    vcpu: Box<dyn Vcpu>,
    script: Script,
}

/// A request of the operator's, which every test may make.
pub fn host(range: GpaRange, to: PageState) -> ConversionRequest {
    request(range, to, ConversionKind::Host)
}

/// A request.
pub fn request(range: GpaRange, to: PageState, kind: ConversionKind) -> ConversionRequest {
    let origin = match kind {
        ConversionKind::Explicit => Origin::MapGpaRange,
        ConversionKind::Implicit => Origin::MemoryFault,
        ConversionKind::Host => Origin::Host,
    };
    ConversionRequest { range, to, kind, origin }
}

/// Pages from this address on.
pub fn pages(start: u64, count: u64) -> GpaRange {
    GpaRange::new(start, count * PAGE_SIZE).unwrap()
}

impl World {
    pub fn new(kind: Kind, size: u64) -> Self {
        Self::with(kind, size, RamOptions::default())
    }

    /// With these options, but for the observer, which fills `events`.
    pub fn with(kind: Kind, size: u64, mut options: RamOptions) -> Self {
        let hypervisor = ModelHypervisor::new();
        let (vm_type, layout) = match kind {
            Kind::Software => (VmType::SwProtected, MemoryLayout::new(Isolation::Software, size, 48)),
            Kind::SwProtected => (VmType::SwProtected, MemoryLayout::one_alias(size, 46)),
            Kind::SevSnp => (VmType::SevSnp, MemoryLayout::one_alias(size, 46)),
            Kind::Tdx => (VmType::Tdx, MemoryLayout::one_alias(size, 46)),
        };
        let vm = hypervisor.create(vm_type).unwrap();
        vm.finalise();
        vm.exit_on_map_gpa_range().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        options.observer = Arc::new(move |event: &MemoryEvent<'_>| {
            log.lock().unwrap().push(match event {
                MemoryEvent::Waiting { range, owner, .. } => format!("waiting {range} {owner}"),
                MemoryEvent::AccessRefused(access) => format!("refused {:#x} {}", access.page, access.obstacle),
                MemoryEvent::DiscardFailed { offset, size, side, .. } => {
                    format!("discard {side} {offset:#x} {size:#x}")
                }
            });
        });
        let ram = Arc::new(GuestRam::new(vm.clone(), layout.unwrap(), options).unwrap());
        let regions = vm.regions();
        let shared = regions.iter().find_map(|(_, region)| region.shared.as_ref()).unwrap().backing.clone();
        let private = regions.iter().find_map(|(_, region)| region.private.as_ref()).unwrap().backing.clone();
        let (vcpu, script) = (vm.create_vcpu(0).unwrap(), vm.script(0));
        let view = ram.devices().view("device");
        Self { kind, vm, faults: hypervisor.faults().clone(), ram, shared, private, view, events, vcpu, script }
    }

    /// Offset of a page's contents in the backings.
    pub fn offset(&self, gpa: u64) -> u64 {
        let (ram, _, own) = self.ram.layout().locate(gpa).unwrap();
        ram.backing_offset(own)
    }

    /// The state of a page by the map.
    pub fn state(&self, gpa: u64) -> PageState {
        self.ram.devices().guards().plane().state(self.offset(gpa) / PAGE_SIZE).unwrap()
    }

    /// The runs of the map.
    pub fn runs(&self) -> Vec<Run> {
        let plane = self.ram.devices().guards().plane();
        plane.runs(plane.all()).collect()
    }

    /// The attribute that KVM has where the state is followed; `None` where no alias follows it.
    pub fn attribute(&self, gpa: u64) -> Option<PageState> {
        let (ram, _, own) = self.ram.layout().locate(gpa).unwrap();
        let alias = ram.aliases.iter().find(|alias| alias.attribute == AttributeRule::Follows)?;
        Some(self.vm.attribute(own + alias.offset))
    }

    /// Bytes of a side that have memory, as offsets.
    pub fn allocated(&self, side: PageState) -> Vec<std::ops::Range<u64>> {
        hypervisor::model::allocated(&self.backing(side)).unwrap()
    }

    fn backing(&self, side: PageState) -> Backing {
        match side {
            PageState::Shared => Backing::Shared(self.shared.clone()),
            PageState::Private => Backing::Private(self.private.clone()),
        }
    }

    /// The first word of a page on one side, which has memory there.
    pub fn word(&self, side: PageState, offset: u64) -> u64 {
        match side {
            PageState::Shared => self.shared.mapping().as_volatile_slice().read_obj(offset as usize).unwrap(),
            PageState::Private => {
                let mut bytes = [0; 8];
                hypervisor::model::read_private(&self.private, offset, &mut bytes).unwrap();
                u64::from_ne_bytes(bytes)
            }
        }
    }

    /// The same of any page; 0 where there is no memory.
    pub fn word_if_any(&self, side: PageState, gpa: u64) -> u64 {
        let offset = self.offset(gpa);
        let has_memory = self.allocated(side).iter().any(|run| run.contains(&offset));
        if has_memory { self.word(side, offset) } else { 0 }
    }

    /// How the guest reaches a page as a private or a shared one.
    fn address(&self, gpa: u64, access: PageState) -> hypervisor::model::Address {
        match (self.kind, access) {
            (Kind::Software, PageState::Private) => (gpa | 1 << self.ram.layout().c_bit().unwrap()).into(),
            _ => self.vm.address(gpa, access),
        }
    }

    /// The guest writes the first word of a page. What contradicts the map is an implicit conversion, as in a machine.
    pub fn guest_writes(&mut self, gpa: u64, access: PageState, word: u64) -> Result<Outcome, ConversionError> {
        let at = self.address(gpa, access);
        self.acts(Action::write(at, word.to_ne_bytes()))
    }

    /// The guest reads the first word of a page.
    pub fn guest_reads(&mut self, gpa: u64, access: PageState) -> Result<Outcome, ConversionError> {
        let at = self.address(gpa, access);
        self.acts(Action::read(at, 8))
    }

    fn acts(&mut self, action: Action) -> Result<Outcome, ConversionError> {
        self.script.push(action);
        let mut error = None;
        for _ in 0..4 {
            match self.vcpu.run().unwrap() {
                Exit::Halt => break,
                Exit::MemoryFault(fault) => {
                    let request = private_faults::from_memory_fault(self.ram.layout(), fault).unwrap();
                    if let Err(refused) = self.ram.convert(request) {
                        error = Some(refused);
                        self.vcpu.inject_general_protection().unwrap();
                    }
                }
                other => panic!("unexpected exit: {other:?}"),
            }
        }
        let mut outcomes = self.script.take_outcomes();
        assert_eq!(outcomes.len(), 1, "the access ends: {outcomes:?}");
        error.map_or_else(|| Ok(outcomes.remove(0)), Err)
    }

    /// A device writes the first word of a page.
    pub fn device_writes(&self, gpa: u64, word: u64) -> Result<(), vm_memory::GuestMemoryError> {
        self.view.write_obj(word, GuestAddress(gpa))
    }

    /// A device reads the first word of a page.
    pub fn device_reads(&self, gpa: u64) -> Result<u64, vm_memory::GuestMemoryError> {
        self.view.read_obj(GuestAddress(gpa))
    }
}
