//! Descriptors that a hostile driver makes up, through virtio-queue's own code: whatever they say, exactly the bytes that
//! devices may touch are touched, a refusal names the first page in the way, and no guard is left behind.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use hypervisor::PAGE_SIZE;
use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error, QueueT, Reader, Writer};
use vm_memory::{Bytes, GuestMemoryError, VolatileMemory};
use vmm::memory::guarded::{Obstacle, RefusedAccess};

use crate::memory::{Memory, Piece, pages};
use crate::ring::{Made, Ring};

/// Two pieces beside each other that are apart in the backing, one that is closed to devices, a hole, and another piece.
const PIECES: [Piece; 4] = [(0, 4, 0, true), (4, 2, 9, true), (6, 1, 4, false), (8, 4, 5, true)];

/// Pages of the last piece that are private, and being converted.
const PRIVATE: u64 = 9;
const CONVERTING: u64 = 11;

/// Descriptors in the table, whose ring takes the first three pages.
const DESCRIPTORS: u16 = 16;

/// Page of the backing that holds a guest page, or what is in the way of devices.
fn look_up(page: u64) -> Result<u64, Obstacle> {
    let piece = PIECES.iter().find(|(first, count, ..)| (*first..first + count).contains(&page));
    let (first, _, backing, devices) = piece.ok_or(Obstacle::NotRam)?;
    match page {
        _ if !devices => Err(Obstacle::NotForDevices),
        PRIVATE => Err(Obstacle::Private),
        CONVERTING => Err(Obstacle::Converting),
        _ => Ok(backing + page - first),
    }
}

/// Where in the backing these bytes are, or the first page that is in the way.
fn offsets(descriptor: &Descriptor) -> Result<Vec<usize>, (u64, Obstacle)> {
    let mut found = Vec::new();
    for n in 0..u64::from(descriptor.len()) {
        // Behind the last address there is nothing.
        let Some(gpa) = descriptor.addr().0.checked_add(n) else { return Err((u64::MAX, Obstacle::NotRam)) };
        let page = gpa / PAGE_SIZE;
        let backing = look_up(page).map_err(|obstacle| (page * PAGE_SIZE, obstacle))?;
        found.push((backing * PAGE_SIZE + gpa % PAGE_SIZE) as usize);
    }
    Ok(found)
}

fn made() -> impl Strategy<Value = Vec<Made>> {
    let near_the_end = (0..2 * PAGE_SIZE).prop_map(|back| u64::MAX - back);
    let at_a_border = (0..14u64, -3i64..4).prop_map(|(page, off)| (page * PAGE_SIZE).saturating_add_signed(off));
    let address = prop_oneof![6 => at_a_border, 3 => 0..13 * PAGE_SIZE, 1 => near_the_end, 1 => any::<u64>()];
    let length = prop_oneof![4 => 0..8u32, 4 => 0..3 * PAGE_SIZE as u32, 1 => Just(u32::MAX), 1 => any::<u32>()];
    // Next, write-only and indirect.
    let flags = prop_oneof![8 => Just(1u16), 6 => Just(3), 2 => Just(0), 2 => Just(2), 1 => 0..8u16];
    let next = prop_oneof![3 => Just(None), 1 => any::<u16>().prop_map(Some), 1 => (0..DESCRIPTORS).prop_map(Some)];
    prop::collection::vec((address, length, flags, next), DESCRIPTORS as usize).prop_map(|made| {
        let numbered = (1..).zip(made);
        numbered
            .map(|(number, (address, length, flags, next))| (address, length, flags, next.unwrap_or(number)))
            .collect()
    })
}

fn contents(memory: &Memory) -> Vec<u8> {
    let mapping = memory.backing.mapping();
    let mut bytes = vec![0; mapping.size()];
    mapping.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
    bytes
}

/// What the descriptors of a chain come to: all their bytes, or the first page that is in the way.
fn expected(descriptors: impl Iterator<Item = Descriptor>) -> Result<Vec<usize>, (u64, Obstacle)> {
    let parts: Result<Vec<_>, _> = descriptors.map(|descriptor| offsets(&descriptor)).collect();
    Ok(parts?.concat())
}

fn refusal(error: Error) -> (u64, Obstacle) {
    match error {
        Error::GuestMemoryError(error @ GuestMemoryError::IOError(_)) => {
            let refused = RefusedAccess::in_error(&error).unwrap();
            (refused.page, refused.obstacle)
        }
        other => panic!("{other}"),
    }
}

proptest! {
    #[test]
    fn touch_what_devices_may_touch_and_nothing_else(made in made()) {
        let mut memory = Memory::new(&PIECES);
        memory.make_private(pages(6, 7));
        let revoked = memory.writer.revoke(pages(8, 9)).unwrap();
        (0..11).for_each(|page| memory.fill(page, page as u8 + 1));
        let view = memory.device.view("device");
        let ring = Ring::new(DESCRIPTORS);
        (0..3).for_each(|page| memory.fill(page, 0));
        ring.offer(&memory, &made);
        let chain = ring.queue().pop_descriptor_chain(&view).unwrap();
        let mut before = contents(&memory);

        let readable = expected(chain.clone().readable());
        match (Reader::new(&view, chain.clone()), &readable) {
            (Ok(mut reader), Ok(offsets)) => {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                prop_assert_eq!(bytes, offsets.iter().map(|offset| before[*offset]).collect::<Vec<_>>());
            }
            (Err(error), Err(first)) => prop_assert_eq!(refusal(error), *first),
            (reader, expected) => prop_assert!(false, "{:?}, expected {expected:?}", reader.map(|_| ())),
        }

        let writable = expected(chain.clone().writable());
        match (Writer::new(&view, chain), &writable) {
            (Ok(mut writer), Ok(offsets)) => {
                let bytes: Vec<u8> = (0..offsets.len()).map(|n| (n % 251) as u8).collect();
                writer.write_all(&bytes).unwrap();
                offsets.iter().zip(bytes).for_each(|(offset, byte)| before[*offset] = byte);
            }
            (Err(error), Err(first)) => prop_assert_eq!(refusal(error), *first),
            (writer, expected) => prop_assert!(false, "{:?}, expected {expected:?}", writer.map(|_| ())),
        }
        prop_assert!(contents(&memory) == before, "other bytes were touched");

        // Nothing is held any more: this would wait.
        memory.writer.restore(revoked);
        memory.make_private(pages(0, 6));
        memory.make_private(pages(7, 11));
    }
}

#[test]
fn the_longest_chain_costs_little() {
    // As many descriptors as there can be, each of as much as fits.
    const LENGTH: u16 = 32768;
    const BYTES: u32 = (u32::MAX / LENGTH as u32) & !4095;
    let ring = Ring::new(LENGTH);
    let mut memory = Memory::new(&[(0, ring.borders()[2], 0, true)]);
    let view = memory.device.view("device");
    let made: Vec<Made> = (1..=LENGTH).map(|next| (8, BYTES, 1, next)).collect();
    ring.offer(&memory, &made);
    let start = Instant::now();
    let chain = ring.queue().pop_descriptor_chain(&view).unwrap();
    let reader = Reader::new(&view, chain).unwrap();
    assert_eq!(reader.available_bytes(), usize::from(LENGTH) * BYTES as usize);
    drop(reader);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    memory.make_private(pages(0, ring.borders()[2]));
}
