//! Buffers of page state changes, entry by entry.

use super::*;
use crate::x86_64::private_faults::snp::{GENERIC_ERROR, INVALID_ENTRY, INVALID_HEADER};
use crate::x86_64::private_faults::tests::{HIGH_END, large};
use PageState::{Private, Shared};

const PRIVATE: u64 = 1 << 52;
const SHARED: u64 = 2 << 52;
const MIB: u64 = 1 << 20;

/// One step: the start and pages of a request with its state; nothing for a batch that needs nothing done.
type Done = Option<(u64, u64, PageState)>;

/// Works a buffer off, as far as it goes.
fn run(buffer: &mut PageStateChange) -> (Vec<Done>, Result<(), Refusal>) {
    let layout = large();
    let mut done = Vec::new();
    loop {
        match buffer.next_batch(&layout) {
            Ok(Some(batch)) => {
                done.push(batch.request.map(|request| (request.range.start(), request.range.pages(), request.to)));
                buffer.complete(&batch);
            }
            Ok(None) => return (done, Ok(())),
            Err(refusal) => return (done, Err(refusal)),
        }
    }
}

fn buffer(entries: &[u64]) -> PageStateChange {
    PageStateChange::new((entries.len() as u64 - 1) << 16, entries).unwrap()
}

#[test]
fn neighbours_that_ask_for_the_same_become_one_request() {
    let page = |operation, number| operation | (number * PAGE_SIZE);
    let entries = [page(PRIVATE, 16), page(PRIVATE, 17), page(SHARED, 18), page(SHARED, 20), page(SHARED, 19)];
    let mut buffer = buffer(&entries);
    let (done, result) = run(&mut buffer);
    let page = |number, pages, to| Some((number * PAGE_SIZE, pages, to));
    assert_eq!(done, [page(16, 2, Private), page(18, 1, Shared), page(20, 1, Shared), page(19, 1, Shared)]);
    assert_eq!(result, Ok(()));
    assert_eq!(buffer.header(), 4 << 16 | 5);
    assert_eq!(buffer.entries(), entries.map(|entry| entry | 1));
}

#[test]
fn large_pages_merge_with_large_pages_only() {
    let mut buffer = buffer(&[
        PRIVATE | LARGE | (2 * MIB),
        PRIVATE | LARGE | (4 * MIB),
        PRIVATE | (6 * MIB), // a small page
        PRIVATE | LARGE | (8 * MIB),
    ]);
    let (done, result) = run(&mut buffer);
    let expected = [(2 * MIB, 1024, Private), (6 * MIB, 1, Private), (8 * MIB, 512, Private)];
    assert_eq!((done, result), (expected.map(Some).to_vec(), Ok(())));
    assert_eq!(buffer.entries()[0] & CURRENT_PAGE, 512);
}

#[test]
fn a_page_that_was_begun_is_finished_and_one_that_was_done_is_left_out() {
    let mut buffer = buffer(&[
        PRIVATE | LARGE | (2 * MIB) | 512,    // done
        PRIVATE | 0x1000 | 1,                 // done
        PRIVATE | LARGE | (4 * MIB) | 510,    // two pages left, which are small ones now
        PRIVATE | (6 * MIB),                  // their neighbour
        PRIVATE | LARGE | (6 * MIB),          // no neighbour
        PRIVATE | LARGE | (8 * MIB) | 511,    // one left
        PRIVATE | LARGE | (10 * MIB),         // its neighbour, which is a large one
        PRIVATE | (12 * MIB),                 // small again
        PRIVATE | (12 * MIB + PAGE_SIZE) | 1, // a neighbour that is done
        PRIVATE | (12 * MIB + 2 * PAGE_SIZE),
    ]);
    let (done, result) = run(&mut buffer);
    let expected = [
        (6 * MIB - 2 * PAGE_SIZE, 3),
        (6 * MIB, 512),
        (10 * MIB - PAGE_SIZE, 1),
        (10 * MIB, 512),
        (12 * MIB, 1),
        (12 * MIB + 2 * PAGE_SIZE, 1),
    ];
    assert_eq!(done, expected.map(|(start, pages)| Some((start, pages, Private))));
    assert_eq!(result, Ok(()));
}

#[test]
fn hints_are_done_without_a_request_and_other_operations_are_refused() {
    for operation in 0..16u64 {
        let entries = [PRIVATE | 0x1000, operation << 52 | 0x2000, SHARED | 0x3000];
        let mut buffer = buffer(&entries);
        let (done, result) = run(&mut buffer);
        match operation {
            1 => assert_eq!((done.len(), result), (2, Ok(()))),
            2 => assert_eq!((done.len(), result), (2, Ok(()))),
            3 | 4 => {
                let expected = [(0x1000, 1, Private), (0x3000, 1, Shared)];
                assert_eq!((done, result), (expected.map(Some).to_vec(), Ok(())));
                assert_eq!(buffer.entries(), entries.map(|entry| entry | 1));
            }
            _ => {
                assert_eq!(result, Err(Refusal::BadEntry { index: 1, entry: entries[1] }));
                assert_eq!(done.len(), 1);
            }
        }
    }
}

#[test]
fn what_lies_before_a_bad_entry_stays_done_and_the_header_names_it() {
    for (bad, information) in [
        (PRIVATE | 1 << 57 | 0x3000, INVALID_ENTRY),
        (PRIVATE | 1 << 63 | 0x3000, INVALID_ENTRY),
        (PRIVATE | 0x3000 | 2, INVALID_ENTRY),
        (PRIVATE | LARGE | (2 * MIB) | 513, INVALID_ENTRY),
        (PRIVATE | LARGE | 0x3000, INVALID_ENTRY),
        (PRIVATE | 0xfee0_0000, GENERIC_ERROR),
        (PRIVATE | HIGH_END, GENERIC_ERROR),
        (PRIVATE | FRAME, GENERIC_ERROR),
    ] {
        let entries = [SHARED | 0x1000, SHARED | 0x2000, bad, PRIVATE | 0x5000];
        let mut buffer = buffer(&entries);
        let (done, result) = run(&mut buffer);
        assert_eq!(done, [Some((0x1000, 2, Shared))], "{bad:#x}");
        assert_eq!(result.unwrap_err().snp_exit_info_2(), information, "{bad:#x}");
        assert_eq!(buffer.header(), 3 << 16 | 2);
        assert_eq!(buffer.entries(), [entries[0] | 1, entries[1] | 1, bad, entries[3]]);
        // Asking again changes nothing.
        assert!(buffer.next_batch(&large()).is_err());
        assert_eq!(buffer.header(), 3 << 16 | 2);
    }
}

#[test]
fn a_batch_that_is_not_completed_comes_again() {
    let mut buffer = buffer(&[PRIVATE | 0x1000, PRIVATE | 0x2000]);
    let first = buffer.next_batch(&large()).unwrap();
    assert_eq!(buffer.next_batch(&large()).unwrap(), first);
    assert_eq!(buffer.header(), 1 << 16);
}

#[test]
fn a_hole_is_shared_already() {
    let (done, result) = run(&mut buffer(&[SHARED | 0xfee0_0000, SHARED | 0x1000]));
    assert_eq!((done, result), (vec![None, Some((0x1000, 1, Shared))], Ok(())));
}

#[test]
fn headers_count_within_the_buffer() {
    let entries = [PRIVATE | 0x1000; 300];
    let new = |header, count: usize| PageStateChange::new(header, &entries[..count]);
    for (header, count) in [(0, 0), (1 << 16, 1), (253 << 16, 300), (0xffff_ffff, 300), (1 << 32, 1), (1 << 63, 1)] {
        let refusal = new(header, count).unwrap_err();
        assert_eq!(refusal, Refusal::BadHeader { header });
        assert_eq!(refusal.snp_exit_info_2(), INVALID_HEADER);
    }
    assert_eq!(new(252 << 16, 253).unwrap().entries().len(), usize::from(MAX_ENTRIES));
    // A current entry behind the last one: all is done.
    for current in [1, 2, 0xffff] {
        let mut buffer = new(current, 1).unwrap();
        assert_eq!(run(&mut buffer), (vec![], Ok(())));
        assert_eq!(buffer.header(), current);
    }
}
