//! MSRs by which a guest gives memory to KVM, which would write to the shared backing of any page.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::HostileGuest;

use crate::{MIB, OPEN, PAGE, SECRET, Test, ZEROS, finish, pages};

pub const TESTS: &[Test] = &[
    ("kvm_gets_no_private_page_by_an_msr", private_pages),
    ("kvm_gets_no_memory_by_an_msr_where_not_all_of_it_is_shared_ram", odd_places),
    ("a_clock_runs_in_a_shared_page_which_stays_shared_for_as_long", clock),
    ("a_clock_that_moves_frees_the_page_where_it_was", moving_clock),
    ("a_value_that_kvm_refuses_frees_no_page_that_it_uses", refused_value),
    ("the_wall_clock_is_written_once_and_holds_no_page", wall_clock),
    ("sev_status_says_sev_and_takes_no_write", sev_status),
];

// MSRs of KVM's (Linux `Documentation/virt/kvm/x86/msr.rst`), and the bit that turns most of them on.
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ASYNC_PAGE_FAULTS: u32 = 0x4b56_4d02;
const STEAL_TIME: u32 = 0x4b56_4d03;
const END_OF_INTERRUPT: u32 = 0x4b56_4d04;
const OLD_WALL_CLOCK: u32 = 0x11;
const OLD_SYSTEM_TIME: u32 = 0x12;
const ON: u64 = 1;

/// AMD's manual volume 2, 15.34.10.
const SEV_STATUS: u32 = 0xc001_0131;

/// Every MSR that names memory, with the bits to set besides the address.
const ALL: [(u32, u64); 7] = [
    (WALL_CLOCK, 0),
    (OLD_WALL_CLOCK, 0),
    (SYSTEM_TIME, ON),
    (OLD_SYSTEM_TIME, ON),
    (ASYNC_PAGE_FAULTS, ON),
    (STEAL_TIME, ON),
    (END_OF_INTERRUPT, ON),
];

fn private_pages() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let all = pages(32 * MIB, ALL.len() as u64)?;
    guest.fills(Private, all, SECRET)?;
    let memory = guest.shared_memory()?;
    let allocated = memory.allocated()?;
    for (number, (msr, bits)) in (0..).zip(ALL) {
        let gpa = all.start() + number * PAGE;
        guest.may_not_write_msr(msr, gpa | bits)?;
        // The private alias is no way around it.
        guest.may_not_write_msr(msr, guest.c_bit_mask() | gpa | bits)?;
    }
    // KVM would write when the guest next runs: it has, many times.
    expect::equal("memory that the VMM's shared side takes", memory.allocated()?, allocated)?;
    guest.sees(Private, all, SECRET)?;
    // A value that turns nothing on names nothing.
    for (msr, _) in ALL.iter().filter(|(_, bits)| *bits == ON) {
        guest.writes_msr(*msr, 0).with_context(|| format!("turning off {msr:#x}"))?;
    }
    expect::equal("private memory", guest.statistics()?.private_bytes, 64 * MIB)?;
    finish(guest)
}

fn odd_places() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let (low, page, last) = (pages(MIB / 2, 1)?, pages(32 * MIB, 1)?, pages(64 * MIB - PAGE, 1)?);
    for shared in [low, page, last] {
        guest.converts(shared, Shared)?;
        guest.fills(Shared, shared, OPEN)?;
    }
    let memory = guest.shared_memory()?;
    let allocated = memory.allocated()?;
    let places = [
        ("half in the private page behind", page.end() - 4),
        ("half in the private page before", page.start() - 4),
        ("half behind RAM", last.end() - 4),
        ("behind RAM", last.end()),
        ("far behind RAM", 1 << 45),
        ("in the hole before 4 GiB", 0xfee0_0000),
        ("at the end of the address space", u64::MAX - 15),
        ("over the end of the address space", u64::MAX - 3),
        ("below 640 KiB, where no device goes", low.start()),
    ];
    for (place, gpa) in places {
        for (msr, bits) in [(WALL_CLOCK, 0), (SYSTEM_TIME, ON)] {
            guest.may_not_write_msr(msr, gpa & !ON | bits).context(place)?;
        }
    }
    expect::equal("memory that the VMM's shared side takes", memory.allocated()?, allocated)?;
    for shared in [low, page, last] {
        guest.sees(Shared, shared, OPEN)?;
    }
    finish(guest)
}

fn clock() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let (around, page) = (pages(32 * MIB - PAGE, 3)?, pages(32 * MIB, 1)?);
    guest.converts(page, Shared)?;
    guest.writes_msr(SYSTEM_TIME, page.start() | ON)?;
    let first = read_clock(&mut guest, page.start())?;
    let failed = guest.statistics()?.conversions_failed;

    // Alone, or with its neighbours.
    guest.may_not_convert(page, Private)?;
    guest.may_not_convert(around, Private)?;
    let statistics = guest.statistics()?;
    expect::equal("refusals", statistics.conversions_failed, failed + 2)?;
    expect::equal("shared memory", statistics.shared_bytes, PAGE)?;
    // A shared page is what it is to stay.
    guest.converts(page, Shared)?;
    guest.writes_msr(SYSTEM_TIME, page.start() | ON)?;
    let second = read_clock(&mut guest, page.start())?;
    ensure!(second > first, "the clock has version {second}, after {first}: KVM has not written it again");

    guest.writes_msr(SYSTEM_TIME, page.start())?;
    guest.converts(around, Private)?;
    guest.sees(Private, page, ZEROS)?;
    guest.shared_memory()?.holds_low(page, ZEROS)?;
    expect::equal("shared memory", guest.statistics()?.shared_bytes, 0)?;
    finish(guest)
}

/// Checks the clock's page (Linux `arch/x86/include/asm/pvclock-abi.h`) and returns its version.
fn read_clock(guest: &mut HostileGuest, gpa: u64) -> anyhow::Result<u32> {
    let version = guest.reads(Shared, gpa)? as u32;
    let system_time = guest.reads(Shared, gpa + 16)?;
    let scale = guest.reads(Shared, gpa + 24)? as u32;
    ensure!(version != 0 && version.is_multiple_of(2), "the clock has version {version}");
    ensure!(system_time != 0 && scale != 0, "the clock says {system_time} ns, with a scale of {scale}");
    Ok(version)
}

fn refused_value() -> anyhow::Result<()> {
    /// KVM takes no value with it set (Linux `arch/x86/include/uapi/asm/kvm_para.h`).
    const RESERVED: u64 = 1 << 1;
    let mut guest = HostileGuest::boot()?;
    let (used, other) = (pages(32 * MIB, 1)?, pages(40 * MIB, 1)?);
    for (msr, name) in [(STEAL_TIME, "steal time"), (END_OF_INTERRUPT, "end of interrupt")] {
        guest.converts(used, Shared)?;
        guest.converts(other, Shared)?;
        guest.writes_msr(msr, used.start() | ON).context(name)?;
        for refused in [RESERVED, other.start() | ON | RESERVED] {
            guest.may_not_write_msr(msr, refused).context(name)?;
            guest.may_not_convert(used, Private).context(name)?;
        }
        guest.converts(other, Private)?;
        guest.writes_msr(msr, 0).context(name)?;
        guest.converts(used, Private)?;
    }
    finish(guest)
}

fn moving_clock() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let (first, second) = (pages(32 * MIB, 1)?, pages(40 * MIB, 1)?);
    guest.converts(first, Shared)?;
    guest.converts(second, Shared)?;
    guest.writes_msr(SYSTEM_TIME, first.start() | ON)?;
    // A refused place leaves the clock where it is, and its page lent.
    guest.may_not_write_msr(SYSTEM_TIME, (48 * MIB) | ON)?;
    guest.may_not_convert(first, Private)?;

    guest.writes_msr(SYSTEM_TIME, second.start() | ON)?;
    read_clock(&mut guest, second.start())?;
    guest.may_not_convert(second, Private)?;
    guest.converts(first, Private)?;
    guest.sees(Private, first, ZEROS)?;
    guest.shared_memory()?.holds_low(first, ZEROS)?;
    finish(guest)
}

fn wall_clock() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let page = pages(32 * MIB, 1)?;
    guest.converts(page, Shared)?;
    guest.writes_msr(WALL_CLOCK, page.start())?;
    // Version and seconds, nanoseconds (`struct pvclock_wall_clock`).
    let word = guest.reads(Shared, page.start())?;
    let (version, seconds) = (word as u32, word >> 32);
    ensure!(version != 0 && version.is_multiple_of(2), "the wall clock has version {version}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    // It is the time at which the machine was made.
    ensure!((now - 300..=now).contains(&seconds), "the wall clock says {seconds}, and it is {now}");
    guest.converts(page, Private)?;
    guest.sees(Private, page, ZEROS)?;
    finish(guest)
}

fn sev_status() -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    expect::equal("SEV_STATUS", guest.reads_msr(SEV_STATUS)?, 1)?;
    for value in [0, 1, 3, u64::MAX] {
        guest.may_not_write_msr(SEV_STATUS, value)?;
    }
    expect::equal("SEV_STATUS", guest.reads_msr(SEV_STATUS)?, 1)?;
    finish(guest)
}
