//! What every layout holds to.

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const ALL: [Aliasing; 3] = [Aliasing::SharedOnly, Aliasing::OnePerState, Aliasing::OneForBoth];

fn software(size: u64) -> MemoryLayout {
    MemoryLayout::new(Isolation::Software, size, 48).unwrap()
}

#[test]
fn bad_sizes_are_errors() {
    for aliasing in ALL {
        let new = |size| MemoryLayout::with_aliasing(aliasing, size, 48);
        assert_eq!(new(1), Err(LayoutError::Unaligned(1)));
        assert_eq!(new(0), Err(LayoutError::TooSmall(0)));
        assert_eq!(new(PAGE_SIZE), Err(LayoutError::TooSmall(PAGE_SIZE)));
        assert!(matches!(new(1 << 48), Err(LayoutError::TooLarge { .. })));
        assert!(matches!(new(!(PAGE_SIZE - 1)), Err(LayoutError::TooLarge { .. })));
        assert!(new(512 * MIB).is_ok());
    }
}

#[test]
fn ranges_tile_both_backings_and_never_overlap() {
    for size in [2 * MIB, 512 * MIB, 3 * GIB, 3 * GIB + PAGE_SIZE, 64 * GIB] {
        for aliasing in ALL {
            let layout = MemoryLayout::with_aliasing(aliasing, size, 48).unwrap();
            let mut offset = 0;
            for ram in layout.ranges() {
                assert_eq!(ram.offset, offset);
                offset += ram.gpa.len();
            }
            assert_eq!(offset, size);
            let places: Vec<_> = layout
                .ranges()
                .iter()
                .flat_map(|ram| ram.aliases.iter().map(|alias| ram.gpa.offset_by(alias.offset).unwrap()))
                .collect();
            for (i, left) in places.iter().enumerate() {
                assert!(places[i + 1..].iter().all(|right| left.intersection(*right).is_none()));
            }
        }
    }
}

#[test]
fn the_private_alias_never_has_the_shared_backing_behind_it() {
    for ram in software(4 * GIB).ranges() {
        for alias in &ram.aliases {
            assert!(!(alias.private && alias.shared));
            if alias.private {
                assert_eq!(alias.attribute, AttributeRule::Fixed(PageState::Private));
            }
        }
    }
}

#[test]
fn a_conversion_sets_the_attribute_of_the_shared_alias() {
    let layout = software(512 * MIB);
    let part = GpaRange::new(MIB, 2 * PAGE_SIZE).unwrap();
    let (ram, part) = layout.split(part).next().unwrap();
    assert_eq!(ram.attributes(part).collect::<Vec<_>>(), [Ok(part)]);
    assert_eq!(ram.backing_offset(part.start()), MIB);
}

#[test]
fn addresses_are_found_by_either_alias() {
    let layout = software(4 * GIB);
    for gpa in [0, LOW_END - 1, LOW_END, 2 * GIB, HIGH_RAM_START, HIGH_RAM_START + GIB - 1] {
        let (_, alias, own) = layout.locate(gpa).unwrap();
        assert!(alias.shared && own == gpa);
        let (_, alias, own) = layout.locate(gpa | 1 << 47).unwrap();
        assert!(alias.private && own == gpa);
    }
    for gpa in [LOW_RAM_LIMIT, HIGH_RAM_START + GIB, 1 << 47 | LOW_RAM_LIMIT, u64::MAX] {
        assert!(layout.locate(gpa).is_none(), "{gpa:#x}");
    }
}

#[test]
fn a_range_over_several_pieces_and_holes_is_split_into_all_of_them() {
    let layout = software(4 * GIB);
    let all = GpaRange::new(0, 1 << 46).unwrap();
    let parts: Vec<_> = layout.split(all).map(|(_, part)| part).collect();
    assert_eq!(parts, layout.ranges().iter().map(|ram| ram.gpa).collect::<Vec<_>>());
}

#[test]
fn an_isolation_names_its_aliases() {
    assert_eq!(MemoryLayout::new(Isolation::None, MIB * 2, 48).unwrap().aliasing(), Aliasing::SharedOnly);
    assert_eq!(software(2 * MIB).aliasing(), Aliasing::OnePerState);
    let error = MemoryLayout::new(Isolation::Software, 1 << 48, 48).unwrap_err().to_string();
    assert!(error.contains("with isolation=software"), "{error}");
}

#[test]
fn one_alias_has_both_backings_at_rams_own_addresses_and_follows_the_state() {
    let layout = MemoryLayout::one_alias(4 * GIB, 48).unwrap();
    assert!(layout.converts() && layout.c_bit().is_none());
    let places: Vec<_> = layout.ranges().iter().map(|ram| (ram.gpa.start(), ram.gpa.end(), ram.offset)).collect();
    assert_eq!(places, [(0, LOW_RAM_LIMIT, 0), (HIGH_RAM_START, HIGH_RAM_START + GIB, LOW_RAM_LIMIT)]);
    for (number, ram) in (0..).zip(layout.ranges()) {
        let alias = Alias { slot: number, offset: 0, shared: true, private: true, attribute: AttributeRule::Follows };
        assert_eq!((ram.aliases.as_slice(), ram.devices), (&[alias][..], true));
    }
}

#[test]
fn a_conversion_of_one_alias_sets_one_attribute() {
    let layout = MemoryLayout::one_alias(4 * GIB, 48).unwrap();
    let part = GpaRange::new(HIGH_RAM_START + MIB, MIB).unwrap();
    let (ram, part) = layout.split(part).next().unwrap();
    assert_eq!(ram.attributes(part).collect::<Vec<_>>(), [Ok(part)]);
    assert_eq!(ram.backing_offset(part.start()), LOW_RAM_LIMIT + MIB);
}

#[test]
fn one_alias_may_have_all_addresses_that_the_guest_has() {
    let limit = (1 << 40) - (HIGH_RAM_START - LOW_RAM_LIMIT);
    let layout = MemoryLayout::one_alias(limit, 40).unwrap();
    assert_eq!(layout.ranges().last().unwrap().gpa.end(), 1 << 40);
    let aliasing = Aliasing::OneForBoth;
    let size = limit + PAGE_SIZE;
    assert_eq!(MemoryLayout::one_alias(size, 40), Err(LayoutError::TooLarge { size, limit, aliasing }));
}

#[test]
fn a_window_is_the_end_of_low_ram_and_leaves_enough() {
    let layout = software(512 * MIB);
    assert_eq!((layout.window(), layout.usable_low_end()), (None, 512 * MIB));
    let reserved = layout.clone().reserving(16 * MIB).unwrap();
    assert_eq!(reserved.window(), GpaRange::new(496 * MIB, 16 * MIB).ok());
    assert_eq!((reserved.low_ram_end(), reserved.usable_low_end()), (512 * MIB, 496 * MIB));
    assert_eq!(reserved.ranges(), layout.ranges(), "it stays RAM");
    assert_eq!(layout.clone().reserving(0), Ok(layout.clone()));
    assert_eq!(layout.clone().reserving(5), Err(LayoutError::WindowUnaligned(5)));
    let limit = 512 * MIB - MIN_RAM;
    assert!(layout.clone().reserving(limit).is_ok());
    let window = limit + PAGE_SIZE;
    assert_eq!(layout.reserving(window), Err(LayoutError::WindowTooLarge { window, low: 512 * MIB, limit }));
    // Low RAM ends where devices begin, however much there is.
    assert_eq!(software(8 * GIB).reserving(MIB).unwrap().window(), GpaRange::new(LOW_RAM_LIMIT - MIB, MIB).ok());
}

#[test]
fn the_launch_window_lies_between_the_most_ram_and_the_c_bit() {
    assert_eq!(MemoryLayout::new(Isolation::None, GIB, 48).unwrap().launch_window(), None);
    assert_eq!(MemoryLayout::one_alias(GIB, 48).unwrap().launch_window(), None);
    let most = (1 << 46) - (HIGH_RAM_START - LOW_RAM_LIMIT);
    for size in [512 * MIB, 8 * GIB, most] {
        let layout = software(size);
        let window = layout.launch_window().unwrap();
        assert_eq!(window.len(), layout.low_ram_end());
        assert!(layout.ranges().iter().all(|ram| ram.gpa.end() <= window.start()), "{size:#x}");
        assert!(window.end() <= 1 << layout.c_bit().unwrap());
    }
    let error = MemoryLayout::new(Isolation::Software, most + PAGE_SIZE, 48).unwrap_err();
    assert!(matches!(error, LayoutError::TooLarge { limit, .. } if limit == most));
}
