//! What is before the guest: regions and attributes, and the rules by which an access finds its bytes.

use std::collections::{BTreeMap, HashMap};

use vm_memory::MmapRegion;
use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};

use super::attributes::Attributes;
use super::privateness::{Address, Privateness};
use crate::{GpaRange, MemoryFault, PAGE_SIZE, PageState, Region};

/// No guest address is above this: 52 bits, as many as an x86 processor can have.
const END_OF_ADDRESSES: u64 = 1 << 52;

/// Why an access does not find its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// It leaves with this.
    Fault(MemoryFault),
    /// Nothing is behind the shared page.
    NoBacking,
    /// No region holds the page at this address, and the access is a shared one.
    NoRegion(u64),
}

/// One region, and its private bytes as the model sees them.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: u32,
    pub(super) region: Region,
    pub(super) private: Option<MmapRegion>,
}

/// Regions and attributes of one VM.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) attributes: Attributes,
    /// By first address.
    slots: BTreeMap<u64, Slot>,
    /// First addresses by number.
    numbers: HashMap<u32, u64>,
}

impl Memory {
    /// The error number with which KVM refuses this region, which fits a slot; the order is KVM's, too.
    pub(super) fn check(&self, number: u32, region: &Region, rule: Privateness, max: u32) -> Result<(), i32> {
        let range = region.range;
        if self.numbers.contains_key(&number) {
            return Err(libc::EEXIST);
        }
        let no_private_memory = region.private.is_some() && !rule.has_private_memory();
        if no_private_memory || number >= max {
            return Err(libc::EINVAL);
        }
        if self.overlapping(range).is_some() {
            return Err(libc::EEXIST);
        }
        if self.shows_private_bytes_of(region) || range.end() > END_OF_ADDRESSES {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    fn overlapping(&self, range: GpaRange) -> Option<&Slot> {
        let (_, last) = self.slots.range(..range.end()).next_back()?;
        last.region.range.intersection(range).map(|_| last)
    }

    /// Whether a region shows any of these private bytes already.
    fn shows_private_bytes_of(&self, region: &Region) -> bool {
        let Some(wanted) = &region.private else { return false };
        self.slots.values().any(|slot| {
            slot.region.private.as_ref().is_some_and(|used| {
                std::sync::Arc::ptr_eq(&used.backing, &wanted.backing)
                    && used.offset < wanted.offset.saturating_add(region.range.len())
                    && wanted.offset < used.offset.saturating_add(slot.region.range.len())
            })
        })
    }

    pub(super) fn add(&mut self, slot: Slot) {
        let first = slot.region.range.start();
        self.numbers.insert(slot.number, first);
        self.slots.insert(first, slot);
    }

    /// Whether there was such a region.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        self.numbers.remove(&number).and_then(|first| self.slots.remove(&first)).is_some()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    fn slot_at(&self, gpa: u64) -> Option<&Slot> {
        let (_, slot) = self.slots.range(..=gpa).next_back()?;
        slot.region.range.contains(gpa).then_some(slot)
    }

    /// The bytes from an address up to the end of its page.
    pub(super) fn bytes_at(&self, address: Address, rule: Privateness) -> Result<VolatileSlice<'_>, Miss> {
        let (gpa, access) = rule.of(address, |gpa| self.attributes.get(gpa));
        let fault = || {
            let private = access == PageState::Private;
            Miss::Fault(MemoryFault { gpa: gpa & !(PAGE_SIZE - 1), size: PAGE_SIZE, private })
        };
        if self.attributes.get(gpa) != access {
            return Err(fault());
        }
        let slot = match (self.slot_at(gpa), access) {
            (Some(slot), _) => slot,
            (None, PageState::Private) => return Err(fault()),
            (None, PageState::Shared) => return Err(Miss::NoRegion(gpa)),
        };
        let offset = gpa - slot.region.range.start();
        let length = PAGE_SIZE - gpa % PAGE_SIZE;
        let (mapping, offset) = match access {
            PageState::Private => (slot.private.as_ref().ok_or_else(fault)?, offset),
            PageState::Shared => {
                let shared = slot.region.shared.as_ref().ok_or(Miss::NoBacking)?;
                // Both regions and their slices were checked to lie in their backings.
                (shared.backing.mapping(), shared.offset + offset)
            }
        };
        mapping.get_slice(offset as usize, length as usize).map_err(|_| Miss::NoBacking)
    }
}
