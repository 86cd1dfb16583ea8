//! The map against a list of states.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::super::guards::Guards;
use super::super::in_flight::MAX_SLOTS;
use super::super::quiesce::{Quiesce, Report, WaitForGuards};
use super::super::runs::Run;
use super::super::writer::{ChangeError, Quiesced, Revoked, Writer};
use super::*;

/// Not a whole number of words, so that the last one has bits behind the last page.
const PAGES: u64 = 200;

const IN_FLIGHT: usize = 3;

/// There are no devices here to wait for.
struct NoDevices;

impl Quiesce for NoDevices {
    fn quiesce(&self, _guards: &Guards, _range: PageRange, _report: &mut Report<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn pages(first: u64, end: u64) -> PageRange {
    PageRange::new(first, end).unwrap()
}

fn quiesce(revoked: Revoked, guards: &Guards) -> Quiesced {
    revoked.quiesce(&NoDevices, guards, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn make_private(writer: &mut Writer, range: PageRange) {
    let guards = Guards::new(writer.plane().clone());
    let revoked = writer.revoke(range).unwrap();
    writer.commit(quiesce(revoked, &guards));
}

/// What a page is in the list.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Page {
    state: PageState,
    converting: bool,
    sub_state: Option<SubState>,
}

#[derive(Debug, Clone)]
enum Change {
    Revoke(PageRange),
    Commit(prop::sample::Index),
    Restore(prop::sample::Index, bool),
    Share(PageRange),
    SubState(PageRange, Option<u16>),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    // Some ranges reach beyond the map.
    let range = || (0..PAGES + 20, 1..80u64).prop_map(|(first, count)| pages(first, first + count));
    let change = prop_oneof![
        3 => range().prop_map(Change::Revoke),
        2 => any::<prop::sample::Index>().prop_map(Change::Commit),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(index, late)| Change::Restore(index, late)),
        2 => range().prop_map(Change::Share),
        1 => (range(), prop::option::of(0u16..3)).prop_map(|(range, tag)| Change::SubState(range, tag)),
    ];
    prop::collection::vec(change, 0..60)
}

/// What the list says a change must end with, if not well.
fn expected_error(list: &[Page], range: PageRange, to: PageState, in_flight: &[Revoked]) -> Option<ChangeError> {
    if range.end() > PAGES {
        return Some(ChangeError::Outside { range, pages: PAGES });
    }
    if let Some(other) = in_flight.iter().find(|other| other.range().overlaps(range)) {
        // Which of several is not promised; the caller of this looks at the kind.
        return Some(ChangeError::InFlight { other: other.range() });
    }
    let same = (range.first()..range.end()).find(|page| list[*page as usize].state == to);
    if let Some(page) = same {
        return Some(ChangeError::NoChange { page, state: to });
    }
    (to == PageState::Private && in_flight.len() == IN_FLIGHT).then_some(ChangeError::Full { capacity: IN_FLIGHT })
}

fn check_result(result: Result<(), ChangeError>, expected: Option<ChangeError>) -> Result<bool, TestCaseError> {
    match (result, expected) {
        (Err(ChangeError::InFlight { .. }), Some(ChangeError::InFlight { .. })) => Ok(false),
        (Err(error), Some(expected)) => {
            prop_assert_eq!(error, expected);
            Ok(false)
        }
        (result, expected) => {
            prop_assert_eq!(result.err(), expected);
            Ok(true)
        }
    }
}

fn check_against(plane: &StatePlane, writer: &Writer, list: &[Page], asked: PageRange) -> Result<(), TestCaseError> {
    let bytes = |count: usize| count as u64 * PAGE_SIZE;
    let private = list.iter().filter(|page| page.state == PageState::Private).count();
    let converting = list.iter().filter(|page| page.converting).count();
    let statistics = plane.statistics();
    prop_assert_eq!(statistics.total_bytes, bytes(list.len()));
    prop_assert_eq!(statistics.private_bytes, bytes(private));
    prop_assert_eq!(statistics.converting_bytes, bytes(converting));

    for (number, page) in (0..).zip(list) {
        prop_assert_eq!(plane.state(number), Some(page.state));
        prop_assert_eq!(plane.is_private(number), page.state == PageState::Private);
        prop_assert_eq!(plane.sub_state(number), page.sub_state);
    }
    prop_assert_eq!(plane.state(PAGES), None);

    let mut next = asked.first();
    let mut last: Option<Run> = None;
    for run in writer.runs(asked) {
        prop_assert_eq!(run.pages.first(), next, "runs have no gaps");
        next = run.pages.end();
        for page in run.pages.first()..run.pages.end() {
            prop_assert_eq!((run.state, run.converting), (list[page as usize].state, list[page as usize].converting));
        }
        if let Some(last) = last {
            let same = (last.state, last.converting) == (run.state, run.converting);
            prop_assert!(!same, "runs are as long as they can be: {last:?} {run:?}");
        }
        last = Some(run);
    }
    prop_assert_eq!(next, asked.end().min(PAGES).max(asked.first()));

    let inside: Vec<&Page> = (asked.first()..asked.end()).filter_map(|page| list.get(page as usize)).collect();
    let complete = asked.end() <= PAGES;
    for state in [PageState::Shared, PageState::Private] {
        prop_assert_eq!(plane.is_all(asked, state), complete && inside.iter().all(|page| page.state == state));
    }
    let refused =
        |page: &u64| list.get(*page as usize).is_none_or(|page| page.state == PageState::Private || page.converting);
    prop_assert_eq!(plane.first_refused(asked), (asked.first()..asked.end()).find(refused));
    match plane.refused_bits().word(asked) {
        Some((word, mask)) => {
            prop_assert_eq!(word.load(order::read()) & mask != 0, plane.first_refused(asked).is_some());
        }
        None => {
            let words = asked.first() / WORD..=(asked.end() - 1) / WORD;
            prop_assert!(words.clone().count() > 1 || *words.start() > (PAGES - 1) / WORD);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn agrees_with_a_list_of_states(changes in changes(), first in 0..PAGES + 20, count in 1..PAGES) {
        let (plane, mut writer) = StatePlane::new(PAGES * PAGE_SIZE, IN_FLIGHT).unwrap();
        let guards = Guards::new(plane.clone());
        let mut list = vec![Page { state: PageState::Shared, converting: false, sub_state: None }; PAGES as usize];
        let mut in_flight: Vec<Revoked> = Vec::new();
        let cut = |range: PageRange| range.first() as usize..range.end() as usize;
        for change in changes {
            match change {
                Change::Revoke(range) => {
                    let expected = expected_error(&list, range, PageState::Private, &in_flight);
                    let result = writer.revoke(range).map(|revoked| in_flight.push(revoked));
                    if check_result(result, expected)? {
                        list[cut(range)].iter_mut().for_each(|page| page.converting = true);
                    }
                }
                Change::Commit(index) if !in_flight.is_empty() => {
                    let revoked = in_flight.swap_remove(index.index(in_flight.len()));
                    let range = revoked.range();
                    writer.commit(quiesce(revoked, &guards));
                    list[cut(range)].fill(Page { state: PageState::Private, converting: false, sub_state: None });
                }
                Change::Restore(index, late) if !in_flight.is_empty() => {
                    let revoked = in_flight.swap_remove(index.index(in_flight.len()));
                    let range = revoked.range();
                    if late {
                        writer.restore(quiesce(revoked, &guards));
                    } else {
                        writer.restore(revoked);
                    }
                    list[cut(range)].iter_mut().for_each(|page| page.converting = false);
                }
                Change::Commit(_) | Change::Restore(..) => {}
                Change::Share(range) => {
                    let expected = expected_error(&list, range, PageState::Shared, &in_flight);
                    if check_result(writer.share(range), expected)? {
                        list[cut(range)].fill(Page { state: PageState::Shared, converting: false, sub_state: None });
                    }
                }
                Change::SubState(range, tag) => {
                    let tag = tag.map(SubState);
                    let outside = (range.end() > PAGES).then_some(ChangeError::Outside { range, pages: PAGES });
                    if check_result(writer.set_sub_state(range, tag), outside)? {
                        list[cut(range)].iter_mut().for_each(|page| page.sub_state = tag);
                    }
                }
            }
            check_against(&plane, &writer, &list, pages(first, first + count))?;
        }
        prop_assert_eq!(plane.statistics().conversions_in_flight, in_flight.len() as u64);
    }
}

#[test]
fn maps_that_cannot_be_are_errors() {
    let new = |size, in_flight| StatePlane::new(size, in_flight).map(|_| ());
    assert_eq!(new(0, 1), Err(PlaneError::Unaligned(0)));
    assert_eq!(new(PAGE_SIZE + 1, 1), Err(PlaneError::Unaligned(PAGE_SIZE + 1)));
    let too_large = (MAX_PAGES + 1) * PAGE_SIZE;
    assert_eq!(new(too_large, 1), Err(PlaneError::TooLarge(too_large)));
    assert_eq!(new(PAGE_SIZE, 0), Err(PlaneError::InFlight(0)));
    assert_eq!(new(PAGE_SIZE, MAX_SLOTS + 1), Err(PlaneError::InFlight(MAX_SLOTS + 1)));
    assert_eq!(new(PAGE_SIZE, MAX_SLOTS), Ok(()));
}

#[test]
fn a_tebibyte_takes_32_mib_and_has_a_first_and_a_last_page() {
    const SIZE: u64 = 1 << 40;
    let (plane, mut writer) = StatePlane::new(SIZE, 64).unwrap();
    assert!(plane.bytes_held() < (32 << 20) + (64 << 10), "{}", plane.bytes_held());
    let last = plane.pages() - 1;
    make_private(&mut writer, pages(0, 1));
    make_private(&mut writer, pages(last, last + 1));
    assert_eq!(plane.statistics().private_bytes, 2 * PAGE_SIZE);
    let states: Vec<_> = plane.runs(plane.all()).map(|run| (run.pages, run.state)).collect();
    let expected = [
        (pages(0, 1), PageState::Private),
        (pages(1, last), PageState::Shared),
        (pages(last, last + 1), PageState::Private),
    ];
    assert_eq!(states, expected);
    assert_eq!(
        writer.share(pages(last, last + 2)).map_err(|error| error.to_string()),
        Err("pages 0xfffffff-0x10000001 are outside of the map, which has 0x10000000 pages".to_owned())
    );
    make_private(&mut writer, pages(1, last));
    assert_eq!(plane.statistics().private_bytes, SIZE);
    assert!(plane.is_all(plane.all(), PageState::Private));
}

#[test]
fn all_of_it_is_there_from_the_start() {
    // One page of the host's memory for each 4096 words: counted as faults of this thread.
    let faults = || {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields = stat.rsplit(") ").next().unwrap();
        fields.split(' ').nth(7).unwrap().parse::<u64>().unwrap()
    };
    let (_plane, mut writer) = StatePlane::new(1 << 40, 1).unwrap();
    let before = faults();
    let revoked = writer.revoke(writer.plane().all()).unwrap();
    let taken = faults() - before;
    assert!(taken < 100, "{taken} faults in the first change of the map");
    writer.restore(revoked);
}

#[test]
fn everything_may_be_converted_at_once_and_given_up() {
    let (plane, mut writer) = StatePlane::new(PAGES * PAGE_SIZE, 1).unwrap();
    let revoked = writer.revoke(plane.all()).unwrap();
    assert_eq!(writer.revoke(pages(0, 1)).unwrap_err(), ChangeError::InFlight { other: plane.all() });
    assert_eq!(plane.statistics().converting_bytes, PAGES * PAGE_SIZE);
    assert!(plane.is_all(plane.all(), PageState::Shared));
    assert_eq!(plane.first_refused(pages(7, 8)), Some(7));
    writer.restore(revoked);
    assert_eq!(plane.first_refused(plane.all()), None);
    assert_eq!(plane.statistics(), PlaneStatistics { total_bytes: PAGES * PAGE_SIZE, ..Default::default() });
}

#[test]
fn a_conversion_that_is_dropped_leaves_its_pages_refused_and_no_others() {
    let (plane, mut writer) = StatePlane::new(PAGES * PAGE_SIZE, 2).unwrap();
    drop(writer.revoke(pages(3, 5)).unwrap());
    assert_eq!(plane.state(3), Some(PageState::Shared));
    assert_eq!(plane.first_refused(pages(0, 10)), Some(3));
    let outside = ChangeError::InFlight { other: pages(3, 5) };
    assert_eq!((writer.revoke(pages(4, 6)).unwrap_err(), writer.share(pages(4, 5)).unwrap_err()), (outside, outside));
    make_private(&mut writer, pages(5, 10));
    assert_eq!(plane.statistics().private_bytes, 5 * PAGE_SIZE);
}

#[test]
#[should_panic(expected = "the guards are on another map")]
fn guards_on_another_map_say_nothing() {
    let (_, mut writer) = StatePlane::new(PAGE_SIZE, 1).unwrap();
    let (other, _) = StatePlane::new(PAGE_SIZE, 1).unwrap();
    let _ = quiesce(writer.revoke(pages(0, 1)).unwrap(), &Guards::new(other));
}

#[test]
fn conversions_of_another_map_are_not_ended() {
    for quiesced in [false, true] {
        let (plane, mut writer) = StatePlane::new(PAGE_SIZE, 1).unwrap();
        let (_, mut other) = StatePlane::new(PAGE_SIZE, 1).unwrap();
        let mine = writer.revoke(pages(0, 1)).unwrap();
        let _others = other.revoke(pages(0, 1)).unwrap();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match quiesced {
            true => other.commit(quiesce(mine, &Guards::new(plane))),
            false => other.restore(mine),
        }));
        assert!(ended.is_err());
        assert_eq!(other.plane().state(0), Some(PageState::Shared));
        assert_eq!(other.plane().first_refused(pages(0, 1)), Some(0));
    }
}

#[test]
fn all_guards_on_one_map_are_the_same() {
    let (plane, mut writer) = StatePlane::new(PAGE_SIZE, 1).unwrap();
    let handle = Guards::new(plane.clone()).handle("device");
    let guard = handle.guard(pages(0, 1)).unwrap();
    let revoked = writer.revoke(pages(0, 1)).unwrap();
    let waits = |revoked: Revoked| {
        revoked.quiesce(&WaitForGuards, &Guards::new(plane.clone()), &mut |_| ControlFlow::Break(()))
    };
    let revoked = waits(revoked).unwrap_err();
    drop(guard);
    assert!(waits(revoked).is_ok());
}
