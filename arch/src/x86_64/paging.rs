//! Identity page tables for the first 4 GiB, in 2-MiB pages.
//!
//! Built as bytes for guest memory. Every entry, of tables and of pages, carries the same `mark`: the C-bit for tables
//! that lie in private memory and map it, 0 otherwise.

/// Bytes that [`identity`] takes: one top table, one table of pointers, four directories.
pub(super) const IDENTITY_SIZE: u64 = 6 * TABLE;

/// Size of one table.
pub(super) const TABLE: u64 = 4096;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
const DIRECTORIES: u64 = 4;

/// Page tables at guest address `at` that map the first 4 GiB to themselves.
pub(super) fn identity(at: u64, mark: u64) -> Vec<u8> {
    let table = |number: u64| (at + number * TABLE) | mark | PRESENT | WRITABLE;
    let mut words = vec![0u64; (IDENTITY_SIZE / 8) as usize];
    words[0] = table(1);
    for directory in 0..DIRECTORIES {
        words[(ENTRIES + directory) as usize] = table(2 + directory);
        for entry in 0..ENTRIES {
            let page = (directory * ENTRIES + entry) << 21;
            words[((2 + directory) * ENTRIES + entry) as usize] = page | mark | PRESENT | WRITABLE | LARGE;
        }
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// A top table at guest address `at`, followed by one table of pointers for each of `views`: view `n` shows, from
/// `n << 39` up, what the four page directories at its address map.
pub(super) fn views(at: u64, views: &[u64]) -> Vec<u8> {
    let entry = |address: u64| address | PRESENT | WRITABLE;
    let mut words = vec![0u64; (1 + views.len()) * ENTRIES as usize];
    for (number, directories) in views.iter().enumerate() {
        words[number] = entry(at + (1 + number as u64) * TABLE);
        for directory in 0..DIRECTORIES {
            words[(1 + number) * ENTRIES as usize + directory as usize] = entry(directories + directory * TABLE);
        }
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// [`identity`], and in view 1 the first 2 MiB without the mark. All tables carry the mark.
pub(super) fn identity_and_plain_start(at: u64, mark: u64) -> Vec<u8> {
    let mut bytes = identity(at, mark);
    let (pointers, directory) = (at + IDENTITY_SIZE, at + IDENTITY_SIZE + TABLE);
    let mut set = |offset: u64, word: u64| {
        let offset = offset as usize;
        bytes.resize(bytes.len().max(offset + TABLE as usize), 0);
        bytes[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
    };
    set(IDENTITY_SIZE, directory | mark | PRESENT | WRITABLE);
    set(IDENTITY_SIZE + TABLE, PRESENT | WRITABLE | LARGE);
    bytes[8..16].copy_from_slice(&(pointers | mark | PRESENT | WRITABLE).to_le_bytes());
    bytes
}

/// Where [`identity`] puts its page directories.
pub(super) fn identity_directories(at: u64) -> u64 {
    at + 2 * TABLE
}

/// Where view `number` of [`views`] starts.
pub(super) fn view_start(number: u64) -> u64 {
    number << 39
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks tables that lie at `base` in `memory`, as a processor does; `mark` is what each entry must carry.
    fn walk(memory: &[u8], base: u64, root: u64, address: u64, marks: [u64; 3]) -> Option<u64> {
        let mut table = root;
        for (level, mark) in [39, 30, 21].into_iter().zip(marks) {
            let offset = (table - base + (address >> level & 511) * 8) as usize;
            let entry = u64::from_le_bytes(memory.get(offset..offset + 8)?.try_into().unwrap());
            if entry & PRESENT == 0 {
                return None;
            }
            assert_eq!(entry & 1 << 47, mark);
            table = entry & 0x7fff_ffff_f000;
            if entry & LARGE != 0 {
                return Some(table | address & 0x1f_ffff);
            }
        }
        None
    }

    #[test]
    fn identity_maps_four_gib_to_themselves_and_no_more() {
        let c = 1 << 47;
        for mark in [0, c] {
            let tables = identity(0x12000, mark);
            for address in [0, 0x1234, 0x20_0000, 0x7fff_ffff, 0xffff_ffff] {
                assert_eq!(walk(&tables, 0x12000, 0x12000, address, [mark; 3]), Some(address));
            }
            assert_eq!(walk(&tables, 0x12000, 0x12000, 1 << 32, [mark; 3]), None);
        }
    }

    #[test]
    fn the_first_addresses_are_seen_without_the_mark_as_well_and_nothing_else_is() {
        let c = 1 << 47;
        let tables = identity_and_plain_start(0xf2000, c);
        assert_eq!(tables.len() as u64, IDENTITY_SIZE + 2 * TABLE);
        for address in [0, 0x9_f000, 0xffff_ffff] {
            assert_eq!(walk(&tables, 0xf2000, 0xf2000, address, [c; 3]), Some(address));
        }
        assert_eq!(walk(&tables, 0xf2000, 0xf2000, view_start(1) + 0x9_f123, [c, c, 0]), Some(0x9_f123));
        assert_eq!(walk(&tables, 0xf2000, 0xf2000, view_start(1) + 0x20_0000, [c, c, 0]), None);
    }

    #[test]
    fn two_views_show_the_same_addresses_with_and_without_the_mark() {
        let c = 1 << 47;
        let (plain, marked, top) = (0x3000, 0x9000, 0xf000);
        let mut memory = identity(plain, 0);
        memory.extend(identity(marked, c));
        memory.extend(views(top, &[identity_directories(marked), identity_directories(plain)]));
        assert_eq!(walk(&memory, plain, top, 0x1234_5678, [0, 0, c]), Some(0x1234_5678));
        assert_eq!(walk(&memory, plain, top, view_start(1) + 0x1234_5678, [0, 0, 0]), Some(0x1234_5678));
    }
}
