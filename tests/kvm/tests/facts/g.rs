//! G: guest_memfd files.

use anyhow::ensure;
use kvm_tests::PAGE;
use kvm_tests::expect;
use kvm_tests::raw::{Mapping, Vm};
use kvm_tests::requirement::{Unavailable, guest_memfd_flags, vms_with_guest_memfd};
use kvm_tests::trial::trial;
use libtest_mimic::Trial;
use rustix::fs::{FallocateFlags, fallocate, fstat, ftruncate};
use rustix::io::{Errno, pread, pwrite, read, write};
use rustix::mm::MapFlags;

use crate::r::{GPA, SIZE, region};

/// `GUEST_MEMFD_FLAG_MMAP`.
const MMAP: u64 = 1;
const SIGNED_OVERFLOW: &str = "a guest_memfd offset near INT64_MAX is accepted";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("g1_each_flag_succeeds_iff_advertised", g1),
        trial("g2_files_have_their_own_sizes_and_inodes", g2),
        trial("g3_sizes_that_are_not_whole_pages_are_refused", g3),
        trial("g4_contents_cannot_be_read_or_written", g4),
        trial("g5_without_the_flag_there_is_no_mmap", g5),
        trial("g6_there_is_no_private_copy_on_write_mapping", g6),
        trial("g13_stat_tells_size_and_page_size", g13),
        trial("g14_fallocate_takes_two_modes_inside_the_file", g14),
        trial("g15_unaligned_punches_are_refused", g15),
        trial("g16_offsets_that_overflow_are_refused", g16),
    ]
}

/// The flags to make files with: none, and everything that this VM offers.
fn flag_sets(vm: &Vm) -> Vec<u64> {
    let mut sets = vec![0, guest_memfd_flags(vm)];
    sets.dedup();
    sets
}

/// A flag is accepted if and only if the VM advertises it; so are all of them together.
fn g1() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let advertised = guest_memfd_flags(&vm);
        expect::success("flags 0", vm.create_guest_memfd(PAGE, 0))?;
        expect::success("all flags advertised", vm.create_guest_memfd(PAGE, advertised))?;
        for bit in 0..u64::BITS {
            let flag = 1 << bit;
            let case = format!("flag {flag:#x}, flags advertised: {advertised:#x}");
            let file = vm.create_guest_memfd(PAGE, flag);
            if advertised & flag != 0 {
                expect::success(case, file)?;
            } else {
                expect::failure(&case, Errno::INVAL, file)?;
                let mixed = vm.create_guest_memfd(PAGE, advertised | flag);
                expect::failure(format!("{case}, together"), Errno::INVAL, mixed)?;
            }
        }
    }
    Ok(())
}

/// Two files of one VM are two files: size and inode are their own.
fn g2() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let small = fstat(vm.create_guest_memfd(PAGE, 0)?)?;
        let one = vm.create_guest_memfd(PAGE, 0)?;
        let two = vm.create_guest_memfd(2 * PAGE, 0)?;
        let (one, two) = (fstat(&one)?, fstat(&two)?);
        expect::equal("size of a closed file", small.st_size, PAGE as i64)?;
        expect::equal("size of the first", one.st_size, PAGE as i64)?;
        expect::equal("size of the second", two.st_size, 2 * PAGE as i64)?;
        ensure!(one.st_ino != two.st_ino, "both have inode {}", one.st_ino);
    }
    Ok(())
}

/// Every size that is not a positive number of whole pages is refused.
fn g3() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        for flags in flag_sets(&vm) {
            let negative = [u64::MAX, 1 << 63, (1 << 63) + PAGE, 0u64.wrapping_sub(PAGE)];
            for size in (0..PAGE).chain([PAGE + 1, 2 * PAGE - 1]).chain(negative) {
                let file = vm.create_guest_memfd(size, flags);
                expect::failure(format!("size {size:#x}, flags {flags}"), Errno::INVAL, file)?;
            }
            expect::success("size of one page", vm.create_guest_memfd(PAGE, flags))?;
        }
    }
    Ok(())
}

/// No file operation reads, writes or resizes it, whatever its flags.
fn g4() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        for flags in flag_sets(&vm) {
            let file = vm.create_guest_memfd(PAGE, flags)?;
            let mut bytes = [0; 16];
            expect::failure("read", Errno::INVAL, read(&file, &mut bytes))?;
            expect::failure("write", Errno::INVAL, write(&file, &bytes))?;
            expect::failure("pread", Errno::SPIPE, pread(&file, &mut bytes, 0))?;
            expect::failure("pwrite", Errno::SPIPE, pwrite(&file, &bytes, 0))?;
            expect::failure("ftruncate", Errno::INVAL, ftruncate(&file, 2 * PAGE))?;
            expect::equal("size afterwards", fstat(&file)?.st_size, PAGE as i64)?;
        }
    }
    Ok(())
}

/// A file made without MMAP can't be mapped; one made with it can, where that is offered.
fn g5() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(PAGE, 0)?;
        let mapping = Mapping::of(&file, PAGE as usize, MapFlags::SHARED);
        expect::failure("MAP_SHARED without MMAP", Errno::NODEV, mapping)?;
        if guest_memfd_flags(&vm) & MMAP != 0 {
            let file = vm.create_guest_memfd(PAGE, MMAP)?;
            let mapping = Mapping::of(&file, PAGE as usize, MapFlags::SHARED);
            expect::success("MAP_SHARED with MMAP", mapping)?;
        }
    }
    Ok(())
}

/// MAP_PRIVATE fails: with EINVAL for a file that can be mapped at all, with ENODEV else.
fn g6() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        for flags in flag_sets(&vm) {
            let file = vm.create_guest_memfd(PAGE, flags)?;
            let mapping = Mapping::of(&file, PAGE as usize, MapFlags::PRIVATE);
            let expected = if flags & MMAP != 0 { Errno::INVAL } else { Errno::NODEV };
            expect::failure(format!("MAP_PRIVATE, flags {flags}"), expected, mapping)?;
        }
    }
    Ok(())
}

/// st_size is the size asked for, st_blksize one page: there are no large folios yet.
fn g13() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        for pages in [1, 3, 512, 513, 1 << 30] {
            let stat = fstat(vm.create_guest_memfd(pages * PAGE, 0)?)?;
            expect::equal("st_size", stat.st_size, (pages * PAGE) as i64)?;
            expect::equal("st_blksize", stat.st_blksize, PAGE as i64)?;
        }
    }
    Ok(())
}

/// Only KEEP_SIZE (inside the file) and KEEP_SIZE with PUNCH_HOLE (anywhere) are offered.
fn g14() -> anyhow::Result<()> {
    use FallocateFlags as Mode;
    const ALLOCATE: Mode = Mode::KEEP_SIZE;
    const PUNCH: Mode = Mode::KEEP_SIZE.union(Mode::PUNCH_HOLE);

    let accepted = [
        (ALLOCATE, 0, SIZE),
        (ALLOCATE, PAGE, PAGE), // a second time
        (PUNCH, PAGE, PAGE),
        (PUNCH, PAGE, PAGE), // where nothing is
        (ALLOCATE, PAGE, PAGE),
        (PUNCH, 3 * PAGE, 2 * PAGE), // across the end
        (PUNCH, SIZE, PAGE),         // at the end
        (PUNCH, SIZE + PAGE, PAGE),  // past the end
        (PUNCH, 0, SIZE),
    ];
    let refused = [
        (ALLOCATE, 3 * PAGE, 2 * PAGE, Errno::INVAL),
        (ALLOCATE, SIZE, PAGE, Errno::INVAL),
        (ALLOCATE, SIZE + PAGE, PAGE, Errno::INVAL),
        (ALLOCATE, 1, PAGE, Errno::INVAL),
        (ALLOCATE, 0, PAGE - 1, Errno::INVAL),
        (ALLOCATE, 0, 0, Errno::INVAL),
        (PUNCH, 0, 0, Errno::INVAL),
        (Mode::empty(), 0, PAGE, Errno::OPNOTSUPP),
        (Mode::PUNCH_HOLE, 0, PAGE, Errno::OPNOTSUPP),
        (Mode::ZERO_RANGE, 0, PAGE, Errno::OPNOTSUPP),
        (Mode::ZERO_RANGE | Mode::KEEP_SIZE, 0, PAGE, Errno::OPNOTSUPP),
        (Mode::COLLAPSE_RANGE, 0, PAGE, Errno::OPNOTSUPP),
        (Mode::INSERT_RANGE, 0, PAGE, Errno::OPNOTSUPP),
        (Mode::UNSHARE_RANGE, 0, PAGE, Errno::OPNOTSUPP),
        (Mode::UNSHARE_RANGE | Mode::KEEP_SIZE, 0, PAGE, Errno::OPNOTSUPP),
    ];
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(SIZE, 0)?;
        for (mode, offset, length) in accepted {
            let case = format!("{mode:?} of {length} at {offset}");
            expect::success(case, fallocate(&file, mode, offset, length))?;
        }
        for (mode, offset, length, expected) in refused {
            let case = format!("{mode:?} of {length} at {offset}");
            expect::failure(case, expected, fallocate(&file, mode, offset, length))?;
        }
        expect::equal("size afterwards", fstat(&file)?.st_size, SIZE as i64)?;
    }
    Ok(())
}

/// A punch whose offset or length is not whole pages is refused: ten of the twelve below.
fn g15() -> anyhow::Result<()> {
    let mode = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(4 * PAGE, 0)?;
        for offset in [0, 1, PAGE] {
            for length in [1, PAGE - 1, PAGE, PAGE + 1] {
                let case = format!("punching {length} bytes at {offset}");
                let punched = fallocate(&file, mode, offset, length);
                if offset % PAGE == 0 && length == PAGE {
                    expect::success(case, punched)?;
                } else {
                    expect::failure(case, Errno::INVAL, punched)?;
                }
            }
        }
    }
    Ok(())
}

/// An offset that makes offset + size overflow, signed or unsigned, is refused. Some kernels after 6.12 take one that
/// overflows as signed only; nothing may rely on their check.
fn g16() -> anyhow::Result<()> {
    for vm in vms_with_guest_memfd()? {
        let file = vm.create_guest_memfd(SIZE, 0)?;
        let bind = |offset| vm.set_region(&region(0, GPA, &file, offset));
        for before_end in [PAGE, SIZE - PAGE, SIZE] {
            let unsigned = 0u64.wrapping_sub(before_end);
            let case = format!("offset {unsigned:#x}");
            expect::failure(case, Errno::INVAL, bind(unsigned))?;
            let signed = (1 << 63) - before_end;
            match bind(signed) {
                Ok(()) => return Err(Unavailable::KernelBug(SIGNED_OVERFLOW).into()),
                refused => expect::failure(format!("offset {signed:#x}"), Errno::INVAL, refused)?,
            }
        }
    }
    Ok(())
}
