//! A VM of the model's.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::ModelHypervisor;
use super::hypercall::ENCRYPTED;
use super::memory::{Memory, Slot};
use super::privateness::{Address, Privateness};
use super::script::{Action, Script};
use super::vcpu::ModelVcpu;
use super::wires::Wires;
use crate::error::AttributeError;
use crate::faults::{Faults, Operation};
use crate::{
    Backing, ByteSize, Error, GpaRange, GuestMemfd, MemoryCaps, MsiRoute, MsrFilter, PAGE_SIZE, PageState, Region,
    Result, Slice, Vcpu, Vm, VmType,
};

/// A VM that is only modelled. [`Vm`] operates it, as any VM; its own methods look into it and write its guest's script.
#[derive(Debug)]
pub struct ModelVm(Arc<Machine>);

/// What a VM and its vCPUs share: a guest lives on in its vCPUs when the VM is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) rule: Privateness,
    pub(super) faults: Faults,
    pub(super) caps: MemoryCaps,
    memory: RwLock<Memory>,
    /// The guest_memfds made here. They pin the VM, and the VM does not pin them.
    private: Mutex<Vec<Weak<GuestMemfd>>>,
    vcpus: Mutex<Vcpus>,
    exit_on_map_gpa_range: AtomicBool,
    finalised: AtomicBool,
    msr_filter: Mutex<Vec<MsrFilter>>,
    /// It stands still unless somebody sets it.
    clock: AtomicU64,
    wires: Mutex<Wires>,
}

#[derive(Debug, Default)]
struct Vcpus {
    irqchip: bool,
    created: Vec<u8>,
    scripts: HashMap<u8, Script>,
}

/// As the model panics with a lock held in no place, what a lock guards is always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn failed(operation: &'static str, subject: impl Into<String>) -> impl FnOnce(i32) -> Error {
    let subject = subject.into();
    move |errno| Error::Failed { operation, subject, source: io::Error::from_raw_os_error(errno) }
}

impl Machine {
    pub(super) fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn exits_on_map_gpa_range(&self) -> bool {
        self.exit_on_map_gpa_range.load(Ordering::Acquire)
    }

    /// Whether accesses to this MSR leave to the VMM.
    pub(super) fn filters_msr(&self, index: u32, read: bool) -> bool {
        lock(&self.msr_filter).iter().any(|range| {
            index.checked_sub(range.first).is_some_and(|offset| offset < range.count) && (range.reads || !read)
        })
    }

    /// Whether memory may be populated ahead of the guest: confidential guests want to be launched first, and plain SEV
    /// has no way to say that it was.
    pub(super) fn takes_pre_faults(&self) -> bool {
        match self.rule.vm_type {
            VmType::Default | VmType::SwProtected => true,
            VmType::Sev | VmType::SevEs => false,
            VmType::SevSnp | VmType::Tdx => self.finalised.load(Ordering::Acquire),
        }
    }

    /// The private bytes of a region, mapped. A file that another VM made is EINVAL.
    fn map(&self, private: &Slice<GuestMemfd>, size: u64) -> std::result::Result<MmapRegion, i32> {
        let is_it = |file: &Weak<GuestMemfd>| std::ptr::eq(file.as_ptr(), Arc::as_ptr(&private.backing));
        if !lock(&self.private).iter().any(is_it) {
            return Err(libc::EINVAL);
        }
        let file = private.backing.as_fd().try_clone_to_owned().map_err(|_| libc::ENOMEM)?;
        MmapRegion::build(
            Some(FileOffset::new(file.into(), private.offset)),
            usize::try_from(size).map_err(|_| libc::ENOMEM)?,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(|_| libc::ENOMEM)
    }
}

impl ModelVm {
    pub(super) fn new(hypervisor: &ModelHypervisor, vm_type: VmType) -> Self {
        Self(Arc::new(Machine {
            rule: Privateness { vm_type, tdx_shared_bit: hypervisor.tdx_shared_bit },
            faults: hypervisor.faults.clone(),
            caps: hypervisor.caps.clone(),
            memory: RwLock::default(),
            private: Mutex::default(),
            vcpus: Mutex::default(),
            exit_on_map_gpa_range: AtomicBool::new(false),
            finalised: AtomicBool::new(false),
            msr_filter: Mutex::default(),
            clock: AtomicU64::new(0),
            wires: Mutex::default(),
        }))
    }

    /// Its type.
    pub fn vm_type(&self) -> VmType {
        self.0.rule.vm_type
    }

    /// The script of vCPU `id`, which need not exist yet.
    pub fn script(&self, id: u8) -> Script {
        lock(&self.0.vcpus).scripts.entry(id).or_default().clone()
    }

    /// How a guest of this VM makes a shared or a private access, where its type leaves it the choice.
    pub fn address(&self, gpa: u64, access: PageState) -> Address {
        self.0.rule.address(gpa, access)
    }

    /// How a guest of this VM announces a conversion.
    pub fn announcement(&self, range: GpaRange, to: PageState) -> Action {
        let gpa = if self.vm_type() == VmType::Tdx { self.address(range.start(), to).gpa } else { range.start() };
        let attributes = if to == PageState::Private { ENCRYPTED } else { 0 };
        Action::MapGpaRange { gpa, pages: range.pages(), attributes }
    }

    /// Ends the launch of an SEV-SNP or TDX guest: from here on its memory may be populated.
    pub fn finalise(&self) {
        self.0.finalised.store(true, Ordering::Release);
    }

    /// The attribute of a page, which KVM does not tell.
    pub fn attribute(&self, gpa: u64) -> PageState {
        self.0.memory().attributes.get(gpa)
    }

    /// All private pages as runs, lowest first: first address and first behind. Those without a region count.
    pub fn private_runs(&self) -> Vec<(u64, u64)> {
        self.0.memory().attributes.private().collect()
    }

    /// The messages that interrupt lines send, by line.
    pub fn msi_routes(&self) -> Vec<MsiRoute> {
        lock(&self.0.wires).routes()
    }

    /// The interrupt lines that events are wired to, lowest first.
    pub fn interrupt_lines(&self) -> Vec<u32> {
        lock(&self.0.wires).lines()
    }

    /// The addresses that have events, lowest first.
    pub fn event_addresses(&self) -> Vec<u64> {
        lock(&self.0.wires).addresses()
    }

    /// The regions by address, each with its slot's number.
    pub fn regions(&self) -> Vec<(u32, Region)> {
        self.0.memory().slots().map(|slot| (slot.number, slot.region.clone())).collect()
    }
}

impl Vm for ModelVm {
    fn create_irqchip(&self) -> Result<()> {
        let mut vcpus = lock(&self.0.vcpus);
        let refusal = match &*vcpus {
            Vcpus { irqchip: true, .. } => Err(libc::EEXIST),
            Vcpus { created, .. } if !created.is_empty() => Err(libc::EINVAL),
            _ => Ok(()),
        };
        refusal.map_err(failed("create", "the interrupt controllers"))?;
        vcpus.irqchip = true;
        Ok(())
    }

    fn create_vcpu(&self, id: u8) -> Result<Box<dyn Vcpu>> {
        let script = self.script(id);
        let mut vcpus = lock(&self.0.vcpus);
        if vcpus.created.contains(&id) {
            return Err(failed("create", format!("vCPU {id}"))(libc::EEXIST));
        }
        vcpus.created.push(id);
        Ok(Box::new(ModelVcpu::new(id, self.0.clone(), script)))
    }

    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        let irqchip = lock(&self.0.vcpus).irqchip;
        let wire = || if irqchip { lock(&self.0.wires).add_line(event, gsi) } else { Err(libc::EAGAIN) };
        wire().map_err(failed("wire", format!("interrupt line {gsi}")))
    }

    fn unregister_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        lock(&self.0.wires).remove_line(event, gsi).map_err(failed("unwire", format!("interrupt line {gsi}")))
    }

    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<()> {
        let irqchip = lock(&self.0.vcpus).irqchip;
        let route = || if irqchip { lock(&self.0.wires).set_routes(routes) } else { Err(libc::EINVAL) };
        route().map_err(failed("route", format!("{} message-signalled interrupts", routes.len())))
    }

    fn register_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()> {
        lock(&self.0.wires).add_address(event, gpa).map_err(failed("wire", format!("an event to {gpa:#x}")))
    }

    fn unregister_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()> {
        lock(&self.0.wires).remove_address(event, gpa).map_err(failed("unwire", format!("the event at {gpa:#x}")))
    }

    fn exit_on_map_gpa_range(&self) -> Result<()> {
        let enabled = if self.0.caps.exit_hypercall { Ok(()) } else { Err(libc::EINVAL) };
        enabled.map_err(failed("enable", "exits for conversion requests"))?;
        self.0.exit_on_map_gpa_range.store(true, Ordering::Release);
        Ok(())
    }

    fn filter_msrs(&self, filter: &[MsrFilter]) -> Result<()> {
        let offered = self.0.caps.user_space_msr && self.0.caps.msr_filter;
        let enabled = if offered { Ok(()) } else { Err(libc::EINVAL) };
        enabled.map_err(failed("filter", format!("{} ranges of MSRs", filter.len())))?;
        *lock(&self.0.msr_filter) = filter.to_vec();
        Ok(())
    }

    fn clock(&self) -> Result<u64> {
        Ok(self.0.clock.load(Ordering::Relaxed))
    }

    fn set_clock(&self, nanoseconds: u64) -> Result<()> {
        self.0.clock.store(nanoseconds, Ordering::Relaxed);
        Ok(())
    }

    fn create_guest_memfd(&self, size: u64) -> Result<Arc<GuestMemfd>> {
        let subject = format!("{} of private guest memory", ByteSize(size));
        let create = || {
            self.0.faults.before(Operation::CreateGuestMemfd)?;
            if !self.0.caps.guest_memfd {
                return Err(libc::ENOTTY);
            }
            if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
                return Err(libc::EINVAL);
            }
            let file =
                rustix::fs::memfd_create("model-guest-memfd", MemfdFlags::CLOEXEC).map_err(|e| e.raw_os_error())?;
            rustix::fs::ftruncate(&file, size).map_err(|e| e.raw_os_error())?;
            GuestMemfd::new(file, size).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
        };
        let memfd = Arc::new(create().map_err(failed("create", subject))?);
        let mut made = lock(&self.0.private);
        made.retain(|file| file.strong_count() > 0);
        made.push(Arc::downgrade(&memfd));
        Ok(memfd)
    }

    fn add_region(&self, number: u32, region: &Region) -> Result<()> {
        region.check()?;
        let add = || {
            let mut memory = self.0.memory_mut();
            self.0.faults.before(Operation::AddRegion)?;
            memory.check(number, region, self.0.rule, self.0.caps.max_regions)?;
            if region.private.is_some() && !self.0.caps.user_memory2 {
                return Err(libc::ENOTTY);
            }
            let private = region.private.as_ref().map(|slice| self.0.map(slice, region.range.len())).transpose()?;
            memory.add(Slot { number, region: region.clone(), private });
            Ok(())
        };
        add().map_err(failed("add", format!("region {} in slot {number}", region.range)))
    }

    fn remove_region(&self, number: u32) -> Result<()> {
        let remove = || {
            let mut memory = self.0.memory_mut();
            self.0.faults.before(Operation::RemoveRegion)?;
            if memory.remove(number) { Ok(()) } else { Err(libc::EINVAL) }
        };
        remove().map_err(failed("remove", format!("the region in slot {number}")))
    }

    fn set_attribute(&self, range: GpaRange, state: PageState) -> Result<()> {
        self.0.faults.set_attribute(range, state, |range| {
            let errno = match state {
                _ if !self.0.caps.memory_attributes => Some(libc::ENOTTY),
                PageState::Private if !self.0.rule.has_private_memory() => Some(libc::EINVAL),
                _ => None,
            };
            if let Some(errno) = errno {
                return Err(Error::Attribute { range, state, source: AttributeError::from_errno(errno) });
            }
            self.0.memory_mut().attributes.set(range, state);
            Ok(())
        })
    }

    fn discard(&self, backing: &Backing, offset: u64, size: u64) -> Result<()> {
        self.0.faults.discard(backing, offset, size)
    }
}
