//! C7 to C9: conversions by many vCPUs, over many slots, and after the VM.

use std::thread;

use anyhow::{Context, anyhow, ensure};
use hypervisor::PageState::{Private, Shared};
use hypervisor::{Backing, GpaRange, PAGE_SIZE, Region, SharedMemory, Slice, VmType};
use kvm_tests::backend::Backend;
use kvm_tests::expect;
use kvm_tests::guest::Guest;
use kvm_tests::memory::TestMemory;
use kvm_tests::pattern::Pattern;
use std::sync::Arc;

use crate::{BASE, Contract};

const KIB: u64 = 1 << 10;

pub const CONTRACTS: &[Contract] = &[
    ("c7_many_vcpus_convert_chunks_of_their_own", c7),
    ("c8_many_slots_show_pieces_of_one_guest_memfd", c8),
    ("c9_a_guest_memfd_outlives_its_vm_and_serves_no_other", c9),
];

/// Several vCPUs in one 2-MiB page, each with its thread, go back and forth with a chunk of it. None disturbs another.
fn c7(backend: &Backend) -> anyhow::Result<()> {
    const VCPUS: u8 = 4;
    const CHUNK: u64 = 256 * KIB;
    const ROUNDS: u32 = 3;
    let vm = backend.create_private_vm()?;
    let memory = TestMemory::with_both_backings(vm.vm(), 0, GpaRange::new(BASE, u64::from(VCPUS) * CHUNK)?)?;
    let guests: Vec<_> = (0..VCPUS).map(|id| vm.guest(1 + u32::from(id), id)).collect::<anyhow::Result<_>>()?;
    thread::scope(|scope| {
        let memory = &memory;
        let threads: Vec<_> = guests
            .into_iter()
            .zip(0u32..)
            .map(|(mut guest, id)| {
                scope.spawn(move || {
                    let chunk = memory.part(u64::from(id) * CHUNK, CHUNK)?;
                    for round in 0..ROUNDS {
                        let seed = id << 28 | round << 24;
                        back_and_forth(&mut *guest, memory, chunk, seed)
                            .with_context(|| format!("vCPU {id}, round {round}"))?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

fn back_and_forth(guest: &mut dyn Guest, memory: &TestMemory, chunk: GpaRange, seed: u32) -> anyhow::Result<()> {
    let (host, shared, private) = (Pattern::new(seed), Pattern::new(seed | 1 << 20), Pattern::new(seed | 2 << 20));
    memory.host_writes(chunk, host)?;
    guest.sees(chunk, host)?.done()?;
    guest.writes(chunk, shared)?.done()?;
    memory.set(chunk, Private)?;
    guest.sees(chunk, Pattern::ZEROS)?.done()?;
    guest.writes(chunk, private)?.done()?;
    memory.host_sees(chunk, shared)?;
    memory.discard(chunk, Shared)?;
    guest.sees(chunk, private)?.done()?;
    memory.set(chunk, Shared)?;
    memory.discard(chunk, Private)?;
    guest.sees(chunk, Pattern::ZEROS)?.done()?;
    memory.host_sees(chunk, Pattern::ZEROS)
}

/// Slots lie in the guest in another order than their pieces in the file, with holes between them. Each shows its piece and
/// no other; a piece that moves to another slot and address takes its contents along.
fn c8(backend: &Backend) -> anyhow::Result<()> {
    const SLOTS: u64 = 24;
    const PIECE: u64 = 4 * PAGE_SIZE;
    let vm = backend.create_private_vm()?;
    let mut guest = vm.guest(0, 0)?;
    let file = vm.vm().create_guest_memfd(SLOTS * PIECE)?;
    let shared = Arc::new(SharedMemory::new("kvm-tests", SLOTS * PIECE)?);
    // 7 and 24 have no common divisor, so each piece comes once.
    let offset = |number: u64| number * 7 % SLOTS * PIECE;
    let place = |number: u64| GpaRange::new(BASE + number * 3 * PIECE, PIECE);
    let word = |number: u64| Pattern::everywhere(0x6e57_0000 | number as u32);
    let region = |number: u64, range: GpaRange| Region {
        range,
        shared: Some(Slice { backing: shared.clone(), offset: offset(number) }),
        private: Some(Slice { backing: file.clone(), offset: offset(number) }),
    };
    let slot = |number: u64| number as u32 + 1;
    for number in 0..SLOTS {
        vm.vm().add_region(slot(number), &region(number, place(number)?))?;
    }
    // One call for all of it, holes included.
    let all = GpaRange::new(BASE, (SLOTS * 3 - 2) * PIECE)?;
    vm.vm().set_attribute(all, Private)?;
    for number in 0..SLOTS {
        guest.writes(place(number)?, word(number))?.done()?;
    }
    for number in 0..SLOTS {
        guest.sees(place(number)?, word(number))?.done()?;
    }
    guest.writes(place(3)?.offset_by(PIECE)?, word(0))?.private_fault_at(GpaRange::page_of(place(3)?.end())?)?;

    vm.vm().discard(&Backing::Private(file.clone()), offset(5), PIECE)?;
    let moved = place(SLOTS + 1)?;
    vm.vm().remove_region(slot(9))?;
    vm.vm().add_region(slot(SLOTS), &region(9, moved))?;
    vm.vm().set_attribute(moved, Private)?;
    for number in 0..SLOTS {
        match number {
            5 => guest.sees(place(number)?, Pattern::ZEROS)?.done()?,
            9 => guest.sees(moved, word(number))?.done()?,
            _ => guest.sees(place(number)?, word(number))?.done()?,
        }
    }
    Ok(())
}

/// The file is still a file when its VM is gone; another VM does not take it.
fn c9(backend: &Backend) -> anyhow::Result<()> {
    let range = GpaRange::new(BASE, 4 * PAGE_SIZE)?;
    let file = {
        let vm = backend.create_private_vm()?;
        let mut guest = vm.guest(0, 0)?;
        let file = vm.vm().create_guest_memfd(range.len())?;
        let private = Some(Slice { backing: file.clone(), offset: 0 });
        vm.vm().add_region(1, &Region { range, shared: None, private })?;
        vm.vm().set_attribute(range, Private)?;
        guest.writes(range, Pattern::new(1))?.done()?;
        file
    };
    expect::equal("size of the file", file.size(), range.len())?;
    let other = backend.create_private_vm()?;
    let private = Some(Slice { backing: file.clone(), offset: 0 });
    let taken = other.vm().add_region(1, &Region { range, shared: None, private });
    expect::equal("error of another VM", taken.err().and_then(|error| error.errno()), Some(crate::EINVAL))?;
    Backing::Private(file.clone()).discard(0, range.len())?;
    drop(other);
    backend.create_vm(VmType::SwProtected)?;
    ensure!(Arc::strong_count(&file) == 1, "something still holds the file");
    Ok(())
}
