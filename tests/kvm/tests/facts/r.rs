//! R: memory regions ("slots"), with and without a guest_memfd.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, bail};
use kvm_bindings::{
    KVM_CAP_NR_MEMSLOTS, KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region,
    kvm_userspace_memory_region2 as Region,
};
use kvm_tests::PAGE;
use kvm_tests::expect;
use kvm_tests::raw::Vm;
use kvm_tests::requirement::vms_with_guest_memfd;
use kvm_tests::trial::trial;
use libtest_mimic::Trial;
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::Errno;

/// Four pages: room for an overlap at either end.
pub const SIZE: u64 = 4 * PAGE;
/// Where the first region lies.
pub const GPA: u64 = 1 << 32;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("r1_flags_that_do_not_exist_are_refused", r1),
        trial("r2_guest_memfd_excludes_dirty_log_and_readonly", r2),
        trial("r3_slot_numbers_end_at_the_advertised_maximum", r3),
        trial("r4_only_this_vms_guest_memfd_is_taken", r4),
        trial("r5_offsets_must_be_whole_pages_inside_the_file", r5),
        trial("r6_a_file_range_backs_one_slot_only", r6),
        trial("r7_a_guest_address_is_in_one_slot_only", r7),
        trial("r8_a_slot_can_only_be_deleted_and_added_again", r8),
        trial("r9_a_slot_has_at_most_2_to_the_31_pages_less_one", r9),
    ]
}

/// A region of `SIZE` bytes at `gpa`, backed by `file` from `offset` on.
pub fn region(slot: u32, gpa: u64, file: impl AsFd, offset: u64) -> Region {
    Region {
        slot,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: gpa,
        memory_size: SIZE,
        guest_memfd: file.as_fd().as_raw_fd() as u32,
        guest_memfd_offset: offset,
        ..Default::default()
    }
}

fn delete(vm: &Vm, slot: u32) -> Result<(), Errno> {
    vm.set_region(&Region { slot, memory_size: 0, ..Default::default() })
}

/// The first version of the call knows dirty log and read-only, the second also guest_memfd; any other flag is EINVAL in
/// both.
fn r1() -> anyhow::Result<()> {
    const OLD: u32 = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
    for vm in vms_with_guest_memfd()? {
        for flags in (0..u32::BITS).map(|bit| 1 << bit).chain([0]) {
            let case = format!("flags {flags:#x}");
            let first = vm.set_region_v1(&kvm_userspace_memory_region {
                flags,
                guest_phys_addr: GPA,
                memory_size: SIZE,
                ..Default::default()
            });
            if flags & !OLD == 0 {
                expect::success(format!("{case}, first version"), first)?;
                delete(&vm, 0)?;
            } else {
                expect::failure(format!("{case}, first version"), Errno::INVAL, first)?;
            }

            let file = vm.create_guest_memfd(SIZE, 0)?;
            let second = vm.set_region(&Region { flags, ..region(0, GPA, &file, 0) });
            if flags & !(OLD | KVM_MEM_GUEST_MEMFD) == 0 {
                expect::success(format!("{case}, second version"), second)?;
                delete(&vm, 0)?;
            } else {
                expect::failure(format!("{case}, second version"), Errno::INVAL, second)?;
            }
        }
    }
    Ok(())
}

/// A slot with a guest_memfd can neither log dirty pages nor be read-only.
fn r2() -> anyhow::Result<()> {
    const BOTH: u32 = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(SIZE, 0)?;
        let plain = region(0, GPA, &file, 0);
        for extra in [KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, BOTH] {
            let flags = plain.flags | extra;
            let added = vm.set_region(&Region { flags, ..plain });
            expect::failure(format!("flags {flags:#x}"), Errno::INVAL, added)?;
        }
        expect::success("guest_memfd alone", vm.set_region(&plain))?;
    }
    Ok(())
}

/// Slots are numbered up to the maximum advertised; the next number does not exist.
fn r3() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let slots = u32::try_from(vm.capability(KVM_CAP_NR_MEMSLOTS))?;
        let file = vm.create_guest_memfd(SIZE, 0)?;
        for slot in [slots, slots + 1, u32::from(u16::MAX)] {
            let added = vm.set_region(&region(slot, GPA, &file, 0));
            expect::failure(format!("slot {slot} of {slots}"), Errno::INVAL, added)?;
        }
        let last = vm.set_region(&region(slots - 1, GPA, &file, 0));
        expect::success(format!("slot {} of {slots}", slots - 1), last)?;
    }
    Ok(())
}

/// The file must be open, a guest_memfd, and made by this VM.
fn r4() -> anyhow::Result<()> {
    let others = vms_with_guest_memfd()?;
    for (vm, other) in vms_with_guest_memfd()?.iter().zip(&others) {
        let file = vm.create_guest_memfd(SIZE, 0)?;
        let own = region(0, GPA, &file, 0);
        for number in [i32::MAX as u32, u32::MAX] {
            let closed = Region { guest_memfd: number, ..own };
            let case = format!("descriptor {number:#x}");
            expect::failure(case, Errno::BADF, vm.set_region(&closed))?;
        }
        let memfd = memfd_create("not a guest_memfd", MemfdFlags::CLOEXEC)?;
        let added = vm.set_region(&region(0, GPA, &memfd, 0));
        expect::failure("a memfd", Errno::INVAL, added)?;
        let foreign = other.create_guest_memfd(SIZE, 0)?;
        let added = vm.set_region(&region(0, GPA, &foreign, 0));
        expect::failure("another VM's file", Errno::INVAL, added)?;
        expect::success("the VM's own file", vm.set_region(&own))?;
    }
    Ok(())
}

/// An offset is whole pages, and the slot ends no later than the file.
fn r5() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(2 * SIZE, 0)?;
        let unaligned = [1, 8, PAGE - 1, PAGE + 1, SIZE - 1];
        let past_the_end = [SIZE + PAGE, 2 * SIZE, 3 * SIZE];
        for offset in unaligned.into_iter().chain(past_the_end) {
            let added = vm.set_region(&region(0, GPA, &file, offset));
            expect::failure(format!("offset {offset:#x}"), Errno::INVAL, added)?;
        }
        for offset in [PAGE, SIZE] {
            let added = vm.set_region(&region(0, GPA, &file, offset));
            expect::success(format!("offset {offset:#x}"), added)?;
            delete(&vm, 0)?;
        }
    }
    Ok(())
}

/// Two slots on the same pages of a file are refused, at any overlap; neighbours are not. The error is EINVAL, or EEXIST
/// in newer kernels, but one of them throughout.
fn r6() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(3 * SIZE, 0)?;
        vm.set_region(&region(0, GPA, &file, SIZE))?;
        let mut errors = Vec::new();
        for offset in [PAGE, SIZE - PAGE, SIZE, SIZE + PAGE, 2 * SIZE - PAGE] {
            match vm.set_region(&region(1, 2 * GPA, &file, offset)) {
                Ok(()) => bail!("offset {offset:#x} overlaps, yet the slot was added"),
                Err(error) => errors.push(error),
            }
        }
        match errors[0] {
            Errno::INVAL | Errno::EXIST => {}
            other => bail!("an overlap fails with: {other}"),
        }
        errors.dedup();
        expect::equal("number of errors in use", errors.len(), 1)?;
        for (slot, offset) in [(1, 0), (2, 2 * SIZE)] {
            let added = vm.set_region(&region(slot, GPA << slot, &file, offset));
            expect::success(format!("the neighbour at {offset:#x}"), added)?;
        }
    }
    Ok(())
}

/// Two slots on the same guest pages are EEXIST, at any overlap; neighbours are not.
fn r7() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(SIZE, 0)?;
        let other = vm.create_guest_memfd(2 * SIZE, 0)?;
        vm.set_region(&region(0, GPA, &file, 0))?;
        let last = SIZE - PAGE;
        for gpa in [GPA - last, GPA - PAGE, GPA, GPA + PAGE, GPA + last] {
            let added = vm.set_region(&region(1, gpa, &other, 0));
            expect::failure(format!("a slot at {gpa:#x}"), Errno::EXIST, added)?;
        }
        for (slot, gpa, offset) in [(1, GPA - SIZE, 0), (2, GPA + SIZE, SIZE)] {
            let added = vm.set_region(&region(slot, gpa, &other, offset));
            expect::success(format!("the neighbour at {gpa:#x}"), added)?;
        }
    }
    Ok(())
}

/// A slot with a guest_memfd can't be changed. Once it is deleted, its number, its guest pages and its file pages are
/// free, and it can come back as it was.
fn r8() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(2 * SIZE, 0)?;
        let slot = region(0, GPA, &file, 0);
        vm.set_region(&slot)?;
        let changes = [
            ("its address", Region { guest_phys_addr: 2 * GPA, ..slot }),
            ("its offset", Region { guest_memfd_offset: SIZE, ..slot }),
            ("its flags", Region { flags: 0, ..slot }),
            ("its size", Region { memory_size: PAGE, ..slot }),
            ("its user address", Region { userspace_addr: PAGE, ..slot }),
            ("nothing", slot),
        ];
        for (what, changed) in changes {
            let result = vm.set_region(&changed);
            expect::failure(format!("changing {what}"), Errno::INVAL, result)?;
        }
        for round in 0..3 {
            delete(&vm, 0).with_context(|| format!("deleting, round {round}"))?;
            let moved = Region { slot: 1, ..slot };
            expect::success("the same pages as slot 1", vm.set_region(&moved))?;
            delete(&vm, 1)?;
            expect::success("the same slot again", vm.set_region(&slot))?;
        }
        let twice = vm.set_region(&Region { slot: 1, ..slot });
        expect::failure("the same pages twice", Errno::EXIST, twice)?;
        expect::equal("size of the file", fstat(&file)?.st_size, 2 * SIZE as i64)?;
    }
    Ok(())
}

fn r9() -> anyhow::Result<()> {
    const MOST: u64 = (1 << 31) - 1;
    for vm in vms_with_guest_memfd()? {
        let slot = |pages: u64| Region { guest_phys_addr: GPA, memory_size: pages * PAGE, ..Default::default() };
        for pages in [MOST + 1, MOST + 2, 1 << 40] {
            expect::failure(format!("{pages:#x} pages"), Errno::INVAL, vm.set_region(&slot(pages)))?;
        }
        expect::success(format!("{MOST:#x} pages"), vm.set_region(&slot(MOST)))?;
    }
    Ok(())
}
