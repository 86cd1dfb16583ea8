//! A VM of KVM's.
#![expect(unsafe_code, reason = "memory slots take addresses; guest_memfd comes as a raw descriptor")]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_X86_USER_SPACE_MSR, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MSR_EXIT_REASON_FILTER, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_create_guest_memfd, kvm_enable_cap,
    kvm_memory_attributes, kvm_pit_config, kvm_userspace_memory_region, kvm_userspace_memory_region2 as Slot,
};
use kvm_ioctls::{IoEventAddress, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::injected::Injected;
use super::interrupts;
use super::probe::KVM_HC_MAP_GPA_RANGE;
use super::vcpu::KvmVcpu;
use crate::backing::Reservation;
use crate::error::AttributeError;
use crate::faults::Operation;
use crate::{Backing, ByteSize, Error, GpaRange, GuestMemfd, PageState, Region, Result, Vcpu, Vm, VmType};
use crate::{MsiRoute, MsrFilter};

/// Where Intel's KVM keeps three pages for real mode and one page table: below 4 GiB, above all RAM and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A region, and the addresses it shows KVM if it has no shared memory.
#[derive(Debug)]
pub(super) struct Slotted {
    _region: Region,
    _reservation: Option<Reservation>,
}

/// The regions of a VM by slot. Its vCPUs hold the table, too: as long as any of them can run, the guest can reach
/// what is behind its regions, even after the VM's own descriptor is closed.
///
/// The lock also keeps regions in place while a vCPU populates memory: Linux 6.12 hangs, until a signal comes,
/// when a region goes meanwhile (Linux `kvm_tdp_map_page`: it waits for the slot to be gone, which waits for it).
pub(super) type Regions = Arc<RwLock<HashMap<u32, Slotted>>>;

#[derive(Debug)]
pub(super) struct KvmVm {
    // Fields drop in order: the VM's descriptor first, then what its regions need.
    fd: VmFd,
    regions: Regions,
    vm_type: VmType,
    injected: Injected,
}

impl KvmVm {
    pub(super) fn new(fd: VmFd, vm_type: VmType, injected: Injected) -> Self {
        Self { fd, regions: Regions::default(), vm_type, injected }
    }

    fn regions(&self) -> RwLockWriteGuard<'_, HashMap<u32, Slotted>> {
        // Nothing that can panic runs while the table is inconsistent.
        self.regions.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn enable(&self, capability: u32, argument: u64, name: &str) -> Result<()> {
        let mut enable = kvm_enable_cap { cap: capability, ..Default::default() };
        enable.args[0] = argument;
        self.fd.enable_cap(&enable).map_err(Error::failed("enable", name))
    }

    /// Makes, or with a size of 0 deletes, a slot. Slots without private memory go by the older ioctl, which every KVM has.
    fn set_slot(&self, slot: Slot) -> std::result::Result<(), kvm_ioctls::Error> {
        if slot.flags & KVM_MEM_GUEST_MEMFD == 0 {
            let slot = kvm_userspace_memory_region {
                slot: slot.slot,
                flags: slot.flags,
                guest_phys_addr: slot.guest_phys_addr,
                memory_size: slot.memory_size,
                userspace_addr: slot.userspace_addr,
            };
            // SAFETY: the address lies in a mapping or a reservation that the table of regions keeps alive until the slot is
            // deleted, or until neither the VM nor any of its vCPUs is left to use it; the kernel checks the rest.
            unsafe { self.fd.set_user_memory_region(slot) }
        } else {
            // SAFETY: as above; the private memory is the kernel's own.
            unsafe { self.fd.set_user_memory_region2(slot) }
        }
    }
}

impl Vm for KvmVm {
    fn create_irqchip(&self) -> Result<()> {
        self.fd.set_tss_address(TSS_ADDRESS).map_err(Error::failed("place", "the TSS"))?;
        self.fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(Error::failed("place", "the identity map"))?;
        self.fd.create_irq_chip().map_err(Error::failed("create", "the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(pit).map_err(Error::failed("create", "the interval timer"))
    }

    fn create_vcpu(&self, id: u8) -> Result<Box<dyn Vcpu>> {
        let fd = self.fd.create_vcpu(id.into()).map_err(Error::failed("create", format!("vCPU {id}")))?;
        Ok(Box::new(KvmVcpu::new(fd, id, self.vm_type, self.regions.clone(), self.injected.clone())))
    }

    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.fd.register_irqfd(event, gsi).map_err(Error::failed("wire", format!("interrupt line {gsi}")))
    }

    fn unregister_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.fd.unregister_irqfd(event, gsi).map_err(Error::failed("unwire", format!("interrupt line {gsi}")))
    }

    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<()> {
        interrupts::set_routes(&self.fd, routes)
    }

    fn register_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()> {
        let event = interrupts::event(event)?;
        self.fd
            .register_ioevent(&event, &IoEventAddress::Mmio(gpa), NoDatamatch)
            .map_err(Error::failed("wire", format!("an event to {gpa:#x}")))
    }

    fn unregister_ioeventfd(&self, event: BorrowedFd<'_>, gpa: u64) -> Result<()> {
        let event = interrupts::event(event)?;
        self.fd
            .unregister_ioevent(&event, &IoEventAddress::Mmio(gpa), NoDatamatch)
            .map_err(Error::failed("unwire", format!("the event at {gpa:#x}")))
    }

    fn exit_on_map_gpa_range(&self) -> Result<()> {
        self.enable(KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE, "exits for conversion requests")
    }

    fn filter_msrs(&self, filter: &[MsrFilter]) -> Result<()> {
        self.enable(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER.into(), "exits for filtered MSRs")?;
        // A cleared bit denies, and what is denied exits.
        let bitmaps: Vec<Vec<u8>> = filter.iter().map(|range| vec![0; range.count.div_ceil(8) as usize]).collect();
        let ranges: Vec<MsrFilterRange> = filter
            .iter()
            .zip(&bitmaps)
            .map(|(range, bitmap)| MsrFilterRange {
                flags: if range.reads {
                    MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE
                } else {
                    MsrFilterRangeFlags::WRITE
                },
                base: range.first,
                msr_count: range.count,
                bitmap,
            })
            .collect();
        self.fd
            .set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
            .map_err(Error::failed("filter", format!("{} ranges of MSRs", filter.len())))
    }

    fn clock(&self) -> Result<u64> {
        let data = self.fd.get_clock().map_err(Error::failed("read", "the guest's clock"))?;
        Ok(data.clock)
    }

    fn set_clock(&self, nanoseconds: u64) -> Result<()> {
        let data = kvm_clock_data { clock: nanoseconds, ..Default::default() };
        self.fd.set_clock(&data).map_err(Error::failed("set", "the guest's clock"))
    }

    fn create_guest_memfd(&self, size: u64) -> Result<Arc<GuestMemfd>> {
        let subject = || format!("{} of private guest memory", ByteSize(size));
        let arguments = kvm_create_guest_memfd { size, ..Default::default() };
        let raw = self
            .injected
            .before(Operation::CreateGuestMemfd)
            .and_then(|()| self.fd.create_guest_memfd(arguments))
            .map_err(Error::failed("create", subject()))?;
        // SAFETY: the ioctl just made this descriptor, and nobody else has it.
        let file = unsafe { OwnedFd::from_raw_fd(raw) };
        let memfd = GuestMemfd::new(file, size).map_err(|source| Error::Failed {
            operation: "close on exec",
            subject: subject(),
            source,
        })?;
        Ok(Arc::new(memfd))
    }

    fn add_region(&self, slot: u32, region: &Region) -> Result<()> {
        region.check()?;
        let mut regions = self.regions();
        let subject = format!("region {} in slot {slot}", region.range);
        // KVM would take a slot in use as a change of it, and the bits above the slot's number for system management mode.
        let refusal = match slot {
            _ if regions.contains_key(&slot) => Some(libc::EEXIST),
            _ if slot > u16::MAX.into() => Some(libc::EINVAL),
            _ => None,
        };
        if let Some(errno) = refusal {
            let source = io::Error::from_raw_os_error(errno);
            return Err(Error::Failed { operation: "add", subject, source });
        }
        let mut raw =
            Slot { slot, guest_phys_addr: region.range.start(), memory_size: region.range.len(), ..Default::default() };
        let mut reservation = None;
        match &region.shared {
            // `check` has seen that the offset lies inside the mapping.
            Some(shared) => raw.userspace_addr = shared.backing.mapping().as_ptr() as u64 + shared.offset,
            None => {
                let failed =
                    |source| Error::Failed { operation: "reserve addresses for", subject: subject.clone(), source };
                let reserved = Reservation::new(region.range.len()).map_err(failed)?;
                raw.userspace_addr = reserved.address();
                reservation = Some(reserved);
            }
        }
        if let Some(private) = &region.private {
            raw.flags |= KVM_MEM_GUEST_MEMFD;
            raw.guest_memfd = private.backing.as_fd().as_raw_fd() as u32;
            raw.guest_memfd_offset = private.offset;
        }
        let added = self.injected.before(Operation::AddRegion).and_then(|()| self.set_slot(raw));
        added.map_err(Error::failed("add", subject))?;
        regions.insert(slot, Slotted { _region: region.clone(), _reservation: reservation });
        Ok(())
    }

    fn remove_region(&self, slot: u32) -> Result<()> {
        let mut regions = self.regions();
        let raw = Slot { slot, ..Default::default() };
        let removed = self.injected.before(Operation::RemoveRegion).and_then(|()| self.set_slot(raw));
        removed.map_err(Error::failed("remove", format!("the region in slot {slot}")))?;
        regions.remove(&slot);
        Ok(())
    }

    fn set_attribute(&self, range: GpaRange, state: PageState) -> Result<()> {
        let attributes = match state {
            PageState::Shared => 0,
            PageState::Private => u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE),
        };
        self.injected.set_attribute(range, state, |range| {
            let raw = kvm_memory_attributes { address: range.start(), size: range.len(), attributes, flags: 0 };
            self.fd.set_memory_attributes(raw).map_err(|errno| Error::Attribute {
                range,
                state,
                source: AttributeError::from_errno(errno.errno()),
            })
        })
    }

    fn discard(&self, backing: &Backing, offset: u64, size: u64) -> Result<()> {
        self.injected.discard(backing, offset, size)
    }
}
