//! virtio-queue works on a view as it is.

use std::io::{Read, Write};

use hypervisor::PAGE_SIZE;
use virtio_queue::{Error, QueueT, Reader};
use vm_memory::GuestAddress;
use vmm::memory::guarded::{Obstacle, RefusedAccess};

use crate::memory::{Memory, pages};
use crate::ring::Ring;

const RING: Ring = Ring::new(16);

/// VIRTQ_DESC_F_NEXT and VIRTQ_DESC_F_WRITE.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Makes a chain of these available: address, length and flags.
fn offer(memory: &Memory, descriptors: &[(u64, u32, u16)]) {
    let made: Vec<_> = (1..).zip(descriptors).map(|(next, (at, length, flags))| (*at, *length, *flags, next)).collect();
    RING.offer(memory, &made);
}

#[test]
fn a_chain_is_read_and_written_through_a_view() {
    let memory = Memory::new(&[(0, 64, 0, true)]);
    let view = memory.device.view("device");
    let mut queue = RING.queue();
    assert!(queue.is_valid(&view));

    memory.fill(10, b'a');
    memory.fill(12, b'b');
    let page = PAGE_SIZE as u32;
    offer(&memory, &[(10 * PAGE_SIZE, 3, NEXT), (12 * PAGE_SIZE, 2, NEXT), (20 * PAGE_SIZE - 4, page, WRITE)]);
    let chain = queue.pop_descriptor_chain(&view).unwrap();
    let head = chain.head_index();
    let mut request = Vec::new();
    chain.clone().reader(&view).unwrap().read_to_end(&mut request).unwrap();
    assert_eq!(request, b"aaabb");
    let mut writer = chain.writer(&view).unwrap();
    writer.write_all(&[7; 8]).unwrap();
    drop(writer);
    queue.add_used(&view, head, 8).unwrap();
    assert_eq!(memory.page(19)[PAGE_SIZE as usize - 5..], [0, 7, 7, 7, 7]);
    assert_eq!(memory.page(20)[..5], [7, 7, 7, 7, 0]);
    assert_eq!(view.read_obj::<u16>(GuestAddress(RING.used().0 + 2)).unwrap(), 1);
    assert!(queue.pop_descriptor_chain(&view).is_none());
}

#[test]
fn a_chain_that_names_a_private_page_is_an_error_that_says_so() {
    let mut memory = Memory::new(&[(0, 64, 0, true)]);
    memory.make_private(pages(12, 13));
    let view = memory.device.view("device");
    let mut queue = RING.queue();
    offer(&memory, &[(10 * PAGE_SIZE, 3, NEXT), (12 * PAGE_SIZE, 2, 0)]);
    let chain = queue.pop_descriptor_chain(&view).unwrap();
    let error = match Reader::new(&view, chain) {
        Err(Error::GuestMemoryError(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(reader) => panic!("a private page can be read: {} bytes", reader.available_bytes()),
    };
    let refused = RefusedAccess::in_error(&error).unwrap();
    assert_eq!((refused.page, refused.obstacle), (12 * PAGE_SIZE, Obstacle::Private));
}

#[test]
fn a_queue_whose_rings_became_private_is_an_error() {
    let mut memory = Memory::new(&[(0, 64, 0, true)]);
    let view = memory.device.view("device");
    let mut queue = RING.queue();
    offer(&memory, &[(10 * PAGE_SIZE, 3, 0)]);
    memory.make_private(pages(1, 3));
    assert!(!queue.is_valid(&view));
    assert!(queue.pop_descriptor_chain(&view).is_none());
    assert!(queue.add_used(&view, 0, 3).is_err());
    assert_eq!(memory.refusals.lock().unwrap().first().unwrap().obstacle, Obstacle::Private);
}
