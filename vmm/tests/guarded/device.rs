//! What one device may and may not do.

use hypervisor::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};
use vmm::memory::guarded::{DeviceView, Obstacle, RefusedAccess};

use crate::memory::{Memory, Piece, pages};

/// Closed to devices; then three pieces with a hole before the last; the second lies behind the third in the backing.
const PIECES: [Piece; 4] = [(0, 2, 0, false), (2, 4, 2, true), (6, 2, 8, true), (16, 2, 6, true)];

fn at(page: u64, offset: u64) -> GuestAddress {
    GuestAddress(page * PAGE_SIZE + offset)
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(result: Result<T, GuestMemoryError>) -> (u64, Obstacle) {
    let error = result.unwrap_err();
    let refused = RefusedAccess::in_error(&error).expect("a refusal");
    (refused.page / PAGE_SIZE, refused.obstacle)
}

#[test]
fn bytes_go_where_their_page_lies_in_the_backing() {
    let memory = Memory::new(&PIECES);
    let view = memory.device.view("device");
    for (gpa, backing) in [(2, 2), (5, 5), (6, 8), (7, 9), (16, 6), (17, 7)] {
        memory.fill(backing, 1);
        view.write_obj(0x0706_0504_0302_0100_u64, at(gpa, 24)).unwrap();
        assert_eq!(view.read_obj::<u64>(at(gpa, 24)).unwrap(), 0x0706_0504_0302_0100);
        assert_eq!(memory.page(backing)[23..33], [1, 0, 1, 2, 3, 4, 5, 6, 7, 1]);
        let mut through_trait = [0u8; 10];
        Bytes::read_slice(&view, &mut through_trait, at(gpa, 23)).unwrap();
        assert_eq!(through_trait, [1, 0, 1, 2, 3, 4, 5, 6, 7, 1]);
        Bytes::write_slice(&view, &[9; 3], at(gpa, 0)).unwrap();
        assert_eq!(memory.page(backing)[..4], [9, 9, 9, 1]);
    }
    assert_eq!(memory.device.refused_accesses(), 0);
}

#[test]
fn an_access_may_span_pieces() {
    let mut memory = Memory::new(&PIECES);
    let view = memory.device.view("device");
    // Guest pages 2 to 7 are pages 2 to 5, 8 and 9 of the backing.
    let bytes: Vec<u8> = (0..6 * PAGE_SIZE).map(|n| (n % 251) as u8).collect();
    view.write_slice(&bytes, at(2, 0)).unwrap();
    assert_eq!(memory.page(5), bytes[3 * PAGE_SIZE as usize..4 * PAGE_SIZE as usize]);
    assert_eq!(memory.page(9), bytes[5 * PAGE_SIZE as usize..]);
    let mut back = vec![0; bytes.len()];
    view.read_slice(&mut back, at(2, 0)).unwrap();
    assert_eq!(back, bytes);
    let lengths: Vec<usize> =
        view.get_slices(at(5, 8), 8192, Permissions::Read).unwrap().map(|slice| slice.unwrap().len()).collect();
    assert_eq!(lengths, [PAGE_SIZE as usize - 8, PAGE_SIZE as usize + 8]);

    // Refused as a whole if either piece is.
    memory.make_private(pages(8, 9));
    memory.fill(5, 7);
    assert_eq!(refusal(view.write_slice(&[1; 16], at(5, PAGE_SIZE - 8))), (6, Obstacle::Private));
    assert_eq!(memory.page(5), [7; PAGE_SIZE as usize]);
}

#[test]
fn refusals_say_which_page_and_why_and_touch_nothing() {
    let mut memory = Memory::new(&PIECES);
    (0..10).for_each(|page| memory.fill(page, 5));
    memory.make_private(pages(4, 5));
    let revoked = memory.writer.revoke(pages(7, 8)).unwrap();
    let view = memory.device.view("disk");
    let cases = [
        (at(4, 0), 8, 4, Obstacle::Private),
        // Two pages, of which the second is refused.
        (at(3, PAGE_SIZE - 4), 8, 4, Obstacle::Private),
        (at(2, 0), 4 * PAGE_SIZE as usize, 4, Obstacle::Private),
        (at(17, 100), 1, 17, Obstacle::Converting),
        (at(16, 0), 2 * PAGE_SIZE as usize, 17, Obstacle::Converting),
        (at(1, 100), 8, 1, Obstacle::NotForDevices),
        (at(8, 0), 8, 8, Obstacle::NotRam),
        (at(7, PAGE_SIZE - 1), 2, 8, Obstacle::NotRam),
        (at(1 << 40, 0), 8, 1 << 40, Obstacle::NotRam),
        (GuestAddress(u64::MAX), 1, u64::MAX / PAGE_SIZE, Obstacle::NotRam),
        (GuestAddress(u64::MAX - 3), 8, u64::MAX / PAGE_SIZE, Obstacle::NotRam),
        (at(6, 0), usize::MAX, 8, Obstacle::NotRam),
    ];
    for (count, (gpa, size, page, obstacle)) in (1..).zip(cases) {
        if size < 1 << 20 {
            let mut buffer = vec![1; size];
            assert_eq!(refusal(Bytes::read_slice(&view, &mut buffer, gpa)), (page, obstacle), "{gpa:?} {size}");
            assert!(buffer.iter().all(|byte| *byte == 1), "something was read");
            assert_eq!(refusal(view.write_slice(&buffer, gpa)), (page, obstacle));
            assert_eq!(refusal(view.pin(&[(at(2, 0), 1), (gpa, size)])), (page, obstacle));
            assert_eq!(refusal(view.window(gpa, size)), (page, obstacle));
        }
        assert!(!view.check_range(gpa, size, Permissions::Read));
        assert!(view.check_range(at(2, 0), 2 * PAGE_SIZE as usize, Permissions::Write));
        let refused = view.get_slices(gpa, size, Permissions::Write).map(|_| ());
        assert_eq!(refusal(refused), (page, obstacle));
        if size == 8 {
            assert_eq!(refusal(view.read_obj::<u64>(gpa)), (page, obstacle));
            assert_eq!(refusal(view.write_obj(0u64, gpa)), (page, obstacle));
        }
        let last = memory.refusals.lock().unwrap().last().cloned().unwrap();
        assert_eq!((last.gpa, last.size, last.page / PAGE_SIZE, last.obstacle), (gpa.0, size, page, obstacle));
        assert!(memory.device.refused_accesses() >= count);
    }
    assert_eq!(memory.device.refused_accesses(), memory.refusals.lock().unwrap().len() as u64);
    assert!((0..10).all(|page| memory.page(page) == [5; PAGE_SIZE as usize]), "something was written");
    memory.writer.restore(revoked);
    assert!(view.read_obj::<u64>(at(17, 0)).is_ok());
}

#[test]
fn the_error_of_a_refusal_prints_what_is_needed() {
    let mut memory = Memory::new(&PIECES);
    memory.make_private(pages(3, 4));
    let error = memory.device.view("net0").read_obj::<u64>(at(3, 16)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Guest memory error: net0 may not touch 0x8 bytes at 0x3010: the page at 0x3000 is private"
    );
    assert_eq!(RefusedAccess::in_error(&GuestMemoryError::InvalidBackendAddress), None);
}

#[test]
fn no_bytes_are_no_access() {
    let mut memory = Memory::new(&PIECES);
    memory.make_private(pages(2, 3));
    let view = memory.device.view("device");
    for gpa in [at(2, 0), at(16, 0), GuestAddress(u64::MAX)] {
        assert_eq!(view.get_slices(gpa, 0, Permissions::Read).unwrap().count(), 0);
        view.write_slice(&[], gpa).unwrap();
        assert!(view.check_range(gpa, 0, Permissions::Read));
        assert!(view.window(gpa, 0).is_err());
    }
    assert_eq!(memory.device.refused_accesses(), 0);
}

#[test]
fn a_window_gives_its_bytes_and_no_others() {
    let memory = Memory::new(&PIECES);
    let view = memory.device.view("device");
    let window = view.window(at(3, 8), PAGE_SIZE as usize).unwrap();
    assert_eq!((window.start(), window.slice().len()), (at(3, 8), PAGE_SIZE as usize));
    window.write_obj(0x1234_u16, at(3, 8)).unwrap();
    window.write_obj(0x5678_u16, at(4, 6)).unwrap();
    assert_eq!(memory.page(3)[8..10], [0x34, 0x12]);
    assert_eq!(memory.page(4)[6..8], [0x78, 0x56]);
    assert_eq!(window.read_obj::<u16>(at(4, 6)).unwrap(), 0x5678);
    for outside in [at(3, 7), at(4, 7), at(4, 8), at(0, 0), GuestAddress(u64::MAX)] {
        assert!(window.read_obj::<u16>(outside).is_err(), "{outside:?}");
        assert!(!window.check_range(outside, 2, Permissions::Read), "{outside:?}");
    }
    assert!(window.check_range(at(3, 8), PAGE_SIZE as usize, Permissions::Write));
    assert!(!window.check_range(at(3, 8), PAGE_SIZE as usize + 1, Permissions::Write));
}

#[test]
fn a_window_is_one_piece() {
    let memory = Memory::new(&PIECES);
    let view = memory.device.view("device");
    assert_eq!(refusal(view.window(at(5, 8), PAGE_SIZE as usize)), (6, Obstacle::Apart));
    // A pin may be of several.
    let pin = view.pin(&[(at(5, 8), PAGE_SIZE as usize), (at(16, 0), 4)]).unwrap();
    let lengths: Vec<usize> = pin.slices().map(|slice| slice.len()).collect();
    assert_eq!(lengths, [PAGE_SIZE as usize - 8, 8, 4]);
    pin.slices().next().unwrap().write_slice(&[3; 4], 0).unwrap();
    assert_eq!(memory.page(5)[7..13], [0, 3, 3, 3, 3, 0]);
}

#[test]
fn views_can_be_sent_to_the_device_s_thread() {
    fn sent<T: Send>(value: T) -> T {
        value
    }
    let memory = Memory::new(&PIECES);
    let view: DeviceView = sent(memory.device.view("device"));
    let pin = sent(view.pin(&[(at(2, 0), 1)]).unwrap());
    drop(view);
    drop(pin);
}
