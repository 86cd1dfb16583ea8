//! How a driver finds the parts of a virtio device's memory (virtio 1.3, 4.1.4).

use super::notifiers::STRIDE;
use super::{COMMON, DEVICE, ISR, MEMORY_SIZE, NOTIFY, PART, PENDING, TABLE};
use crate::devices::pci::config_space::{ConfigSpace, Identity};
use crate::devices::pci::msix::{CONTROL_ENABLE, CONTROL_MASK_ALL};

/// The vendor ID of virtio, and its first device ID (virtio 1.3, 4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// Numbers of capabilities (PCI 3.0, appendix H).
const VENDOR_SPECIFIC: u8 = 0x09;
const MSI_X: u8 = 0x11;

/// Types of the vendor-specific one (virtio 1.3, 4.1.4).
const COMMON_TYPE: u8 = 1;
const NOTIFY_TYPE: u8 = 2;
const ISR_TYPE: u8 = 3;
const DEVICE_TYPE: u8 = 4;
const WINDOW_TYPE: u8 = 5;

/// Offsets in the window's capability: BAR, offset, length, data.
const WINDOW_BAR: u8 = 4;
const WINDOW_OFFSET: u8 = 8;
const WINDOW_LENGTH: u8 = 12;
const WINDOW_DATA: u8 = 16;

/// Where capabilities are that a driver writes to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Places {
    msix: u8,
    window: u8,
}

/// Base class and sub-class by the device's type: what tools show, drivers don't look.
fn class(device_type: u32) -> (u8, u8) {
    match device_type {
        1 => (2, 0),
        2 => (1, 0x80),
        3 => (7, 0x80),
        _ => (0xff, 0),
    }
}

/// The configuration space of a device with so many queues.
pub(super) fn config_space(device_type: u32, queues: u16, base: u32) -> (ConfigSpace, Places) {
    let device = FIRST_DEVICE.wrapping_add(device_type as u16);
    let identity = Identity { vendor: VENDOR, device, revision: 1, class: class(device_type) };
    let mut space = ConfigSpace::new(identity).with_memory(base, MEMORY_SIZE);
    let mut add = |id, body: &[u8], writable: &[u8]| {
        let place = space.add_capability(id, body, writable);
        debug_assert!(place.is_some(), "these few fit");
        place.unwrap_or(0)
    };
    add(VENDOR_SPECIFIC, &part(COMMON_TYPE, COMMON, super::common::SIZE, &[]), &[]);
    add(VENDOR_SPECIFIC, &part(ISR_TYPE, ISR, 1, &[]), &[]);
    add(VENDOR_SPECIFIC, &part(DEVICE_TYPE, DEVICE, PART, &[]), &[]);
    let stride = (STRIDE as u32).to_le_bytes();
    add(VENDOR_SPECIFIC, &part(NOTIFY_TYPE, NOTIFY, STRIDE * u64::from(queues.max(1)), &stride), &[]);
    let msix = add(MSI_X, &msix(queues), &(CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes());
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let window = add(VENDOR_SPECIFIC, &part(WINDOW_TYPE, 0, 0, &[0; 4]), &writable);
    (space, Places { msix, window })
}

/// What follows a vendor-specific capability's number and pointer: its length, its type, and a part of BAR 0.
fn part(kind: u8, offset: u64, length: u64, more: &[u8]) -> Vec<u8> {
    let size = 16 + more.len() as u8;
    let places = [(offset as u32).to_le_bytes(), (length as u32).to_le_bytes()].concat();
    [&[size, kind, 0, 0, 0, 0], &places[..], more].concat()
}

/// What follows the MSI-X capability's number and pointer (PCI 3.0, 6.8.2). A vector for each queue, and one more.
fn msix(queues: u16) -> Vec<u8> {
    [&queues.to_le_bytes()[..], &(TABLE as u32).to_le_bytes(), &(PENDING as u32).to_le_bytes()].concat()
}

impl Places {
    /// The message control word of MSI-X.
    pub(super) fn msix_control(&self, space: &ConfigSpace) -> u16 {
        space.word(self.msix + 2)
    }

    /// Whether an access touches the data of the window.
    pub(super) fn touches_window_data(&self, offset: u8, size: usize) -> bool {
        let data = usize::from(self.window + WINDOW_DATA);
        usize::from(offset) < data + 4 && usize::from(offset) + size > data
    }

    /// The part of the memory that the window shows, if it is a sound one: offset and size.
    pub(super) fn window(&self, space: &ConfigSpace) -> Option<(u64, usize)> {
        let bar = space.word(self.window + WINDOW_BAR) as u8;
        let offset = u64::from(space.double_word(self.window + WINDOW_OFFSET));
        let size = u64::from(space.double_word(self.window + WINDOW_LENGTH));
        let sound = bar == 0 && matches!(size, 1 | 2 | 4) && offset % size == 0 && offset < MEMORY_SIZE.into();
        sound.then_some((offset, size as usize))
    }

    /// What is in the window.
    pub(super) fn window_data(&self, space: &ConfigSpace) -> [u8; 4] {
        space.double_word(self.window + WINDOW_DATA).to_le_bytes()
    }

    /// Puts something into the window.
    pub(super) fn set_window_data(&self, space: &mut ConfigSpace, data: [u8; 4]) {
        space.write(self.window + WINDOW_DATA, &data);
    }
}
