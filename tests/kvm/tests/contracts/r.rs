//! R: regions, guest_memfds and attributes that a hypervisor refuses, each with KVM's error number.

use std::sync::Arc;

use anyhow::bail;
use hypervisor::PageState::{Private, Shared};
use hypervisor::{Backing, Error, GpaRange, GuestMemfd, PAGE_SIZE, Region, Result, SharedMemory, Slice, Vm, VmType};
use kvm_tests::backend::Backend;
use kvm_tests::expect;
use rustix::io::Errno;

use crate::{BASE, Contract};

/// Four pages: room for an overlap at either end.
const SIZE: u64 = 4 * PAGE_SIZE;

pub const CONTRACTS: &[Contract] = &[
    ("r1_slots_are_taken_once_and_end_at_the_maximum", r1),
    ("r2_regions_overlap_neither_in_the_guest_nor_in_a_guest_memfd", r2),
    ("r3_only_the_vms_own_guest_memfd_is_taken", r3),
    ("r4_what_is_not_there_cannot_be_removed", r4),
    ("r5_a_region_too_large_or_too_high_is_refused", r5),
    ("r6_a_guest_memfd_has_a_positive_number_of_whole_pages", r6),
    ("r7_an_ordinary_vm_has_no_private_pages", r7),
    ("r8_discards_are_of_whole_pages_and_may_end_beyond_the_file", r8),
];

fn refused<T>(case: impl std::fmt::Display, result: Result<T>, expected: &[Errno]) -> anyhow::Result<()> {
    let errno = match result {
        Ok(_) => bail!("{case} is taken, expected one of {expected:?}"),
        Err(error) => error.errno(),
    };
    let expected: Vec<_> = expected.iter().map(|errno| errno.raw_os_error()).collect();
    anyhow::ensure!(errno.is_some_and(|errno| expected.contains(&errno)), "{case}: {errno:?}, not one of {expected:?}");
    Ok(())
}

fn taken<T>(case: impl std::fmt::Display, result: Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| anyhow::Error::new(error).context(format!("{case} is refused")))
}

fn private(backing: &Arc<GuestMemfd>, gpa: u64, size: u64, offset: u64) -> anyhow::Result<Region> {
    let private = Some(Slice { backing: backing.clone(), offset });
    Ok(Region { range: GpaRange::new(gpa, size)?, shared: None, private })
}

fn shared(gpa: u64) -> anyhow::Result<Region> {
    let shared = Some(Slice { backing: Arc::new(SharedMemory::new("kvm-tests", SIZE)?), offset: 0 });
    Ok(Region { range: GpaRange::new(gpa, SIZE)?, shared, private: None })
}

/// Of an ordinary VM, too, where KVM has slots of its own above 16 bits, for system management mode.
fn r1(backend: &Backend) -> anyhow::Result<()> {
    slots(backend, &**backend.create_private_vm()?.vm())?;
    slots(backend, &**backend.create_vm(VmType::Default)?.vm())
}

fn slots(backend: &Backend, vm: &dyn Vm) -> anyhow::Result<()> {
    let slots = backend.hypervisor().caps().max_regions;
    taken("slot 3", vm.add_region(3, &shared(BASE)?))?;
    for (case, region) in [("another region", shared(BASE + SIZE)?), ("the same place", shared(BASE)?)] {
        refused(case, vm.add_region(3, &region), &[Errno::EXIST])?;
    }
    taken("the last slot", vm.add_region(slots - 1, &shared(BASE + 2 * SIZE)?))?;
    for slot in [slots, u16::MAX.into(), 1 << 16, (1 << 16) + 1, u32::MAX] {
        refused(format!("slot {slot:#x}"), vm.add_region(slot, &shared(BASE + 3 * SIZE)?), &[Errno::INVAL])?;
    }
    Ok(())
}

/// KVM says EINVAL of bytes of a guest_memfd that are in use, and newer kernels EEXIST.
fn r2(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let vm = vm.vm();
    taken("a region", vm.add_region(0, &shared(BASE)?))?;
    let last = SIZE - PAGE_SIZE;
    for gpa in [BASE - last, BASE - PAGE_SIZE, BASE, BASE + PAGE_SIZE, BASE + last] {
        refused(format!("a region at {gpa:#x}"), vm.add_region(1, &shared(gpa)?), &[Errno::EXIST])?;
    }
    let larger = private(&vm.create_guest_memfd(3 * SIZE)?, BASE - SIZE, 3 * SIZE, 0)?;
    refused("a region around it", vm.add_region(1, &larger), &[Errno::EXIST])?;
    taken("its neighbour below", vm.add_region(1, &shared(BASE - SIZE)?))?;
    taken("its neighbour above", vm.add_region(2, &shared(BASE + SIZE)?))?;

    let file = vm.create_guest_memfd(3 * SIZE)?;
    taken("the middle of a file", vm.add_region(3, &private(&file, 2 * BASE, SIZE, SIZE)?))?;
    for offset in [PAGE_SIZE, SIZE - PAGE_SIZE, SIZE, SIZE + PAGE_SIZE, 2 * SIZE - PAGE_SIZE] {
        let added = vm.add_region(4, &private(&file, 3 * BASE, SIZE, offset)?);
        refused(format!("offset {offset:#x} of it"), added, &[Errno::INVAL, Errno::EXIST])?;
    }
    let all = private(&file, 3 * BASE, 3 * SIZE, 0)?;
    refused("all of it", vm.add_region(4, &all), &[Errno::INVAL, Errno::EXIST])?;
    taken("its start", vm.add_region(4, &private(&file, 3 * BASE, SIZE, 0)?))?;
    taken("its end", vm.add_region(5, &private(&file, 4 * BASE, SIZE, 2 * SIZE)?))?;

    // What was removed is free again: the slot, the addresses and the bytes.
    taken("the removal", vm.remove_region(3))?;
    taken("the same bytes elsewhere", vm.add_region(3, &private(&file, 5 * BASE, SIZE, SIZE)?))?;
    taken("the same addresses", vm.add_region(6, &shared(2 * BASE)?))
}

fn r3(backend: &Backend) -> anyhow::Result<()> {
    let (vm, other) = (backend.create_private_vm()?, backend.create_private_vm()?);
    let foreign = private(&other.vm().create_guest_memfd(SIZE)?, BASE, SIZE, 0)?;
    refused("another VM's", vm.vm().add_region(0, &foreign), &[Errno::INVAL])?;
    let own = private(&vm.vm().create_guest_memfd(SIZE)?, BASE, SIZE, 0)?;
    taken("its own", vm.vm().add_region(0, &own))?;
    taken("the other, by its owner,", other.vm().add_region(0, &foreign))
}

fn r4(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let vm = vm.vm();
    refused("a slot never used", vm.remove_region(0), &[Errno::INVAL])?;
    taken("a region", vm.add_region(0, &shared(BASE)?))?;
    refused("its neighbour", vm.remove_region(1), &[Errno::INVAL])?;
    taken("the region", vm.remove_region(0))?;
    refused("the region, once more,", vm.remove_region(0), &[Errno::INVAL])
}

fn r5(backend: &Backend) -> anyhow::Result<()> {
    const MOST_PAGES: u64 = (1 << 31) - 1;
    let vm = backend.create_private_vm()?;
    let vm = vm.vm();
    let file = vm.create_guest_memfd(1 << 44)?;
    for pages in [MOST_PAGES + 1, MOST_PAGES + 2] {
        let added = vm.add_region(0, &private(&file, BASE, pages * PAGE_SIZE, 0)?);
        anyhow::ensure!(matches!(added, Err(Error::RegionTooLarge { .. })), "a region of {pages:#x} pages: {added:?}");
    }
    for gpa in [1 << 52, 1 << 62, (1 << 52) - PAGE_SIZE] {
        refused(format!("a region at {gpa:#x}"), vm.add_region(0, &shared(gpa)?), &[Errno::INVAL])?;
    }
    Ok(())
}

fn r6(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let vm = vm.vm();
    for size in [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1, 1 << 63, (1 << 63) + PAGE_SIZE, u64::MAX, !(PAGE_SIZE - 1)] {
        refused(format!("size {size:#x}"), vm.create_guest_memfd(size), &[Errno::INVAL])?;
    }
    for size in [PAGE_SIZE, 3 * PAGE_SIZE, 1 << 62] {
        let file = taken(format!("size {size:#x}"), vm.create_guest_memfd(size))?;
        expect::equal("its size", file.size(), size)?;
    }
    Ok(())
}

/// "Shared" is no change there, "private" is no attribute.
fn r7(backend: &Backend) -> anyhow::Result<()> {
    backend.require(&[hypervisor::Capability::MemoryAttributes])?;
    let vm = backend.create_vm(VmType::Default)?;
    let range = GpaRange::new(BASE, SIZE)?;
    for _ in 0..2 {
        taken("shared", vm.vm().set_attribute(range, Shared))?;
        refused("private", vm.vm().set_attribute(range, Private), &[Errno::INVAL])?;
        let error = vm.vm().set_attribute(range, Private);
        let typed = matches!(error, Err(Error::Attribute { source: hypervisor::AttributeError::Invalid, .. }));
        expect::equal("whether the error is typed", typed, true)?;
        vm.vm().add_region(0, &shared(BASE)?)?;
        vm.vm().remove_region(0)?;
    }
    Ok(())
}

fn r8(backend: &Backend) -> anyhow::Result<()> {
    let vm = backend.create_private_vm()?;
    let vm: &Arc<dyn Vm> = vm.vm();
    let backings = [
        Backing::Shared(Arc::new(SharedMemory::new("kvm-tests", SIZE)?)),
        Backing::Private(vm.create_guest_memfd(SIZE)?),
    ];
    for backing in &backings {
        for (offset, size) in [(1, PAGE_SIZE), (0, 1), (0, 0), (PAGE_SIZE, PAGE_SIZE - 1), (PAGE_SIZE - 1, 1)] {
            let discarded = vm.discard(backing, offset, size);
            refused(format!("{size:#x} bytes at {offset:#x}"), discarded, &[Errno::INVAL])?;
        }
        for (offset, size) in [(0, PAGE_SIZE), (0, SIZE), (SIZE - PAGE_SIZE, 4 * PAGE_SIZE), (2 * SIZE, PAGE_SIZE)] {
            taken(format!("{size:#x} bytes at {offset:#x}"), vm.discard(backing, offset, size))?;
        }
    }
    Ok(())
}
