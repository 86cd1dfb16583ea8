//! A guest's memory without a guest.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use hypervisor::{GpaRange, PAGE_SIZE, SharedMemory};
use vm_memory::{Bytes, VolatileMemory};
use vmm::memory::guarded::{
    DeviceMemory, Guards, PageRange, RamPiece, RamTable, RefusedAccess, StatePlane, WaitForGuards, Writer,
};

/// Conversions at a time.
const IN_FLIGHT: usize = 4;

/// RAM at given guest pages, all shared at first.
pub struct Memory {
    pub device: Arc<DeviceMemory>,
    pub writer: Writer,
    /// The backing itself, past all guards.
    pub backing: Arc<SharedMemory>,
    /// All refusals that were reported.
    pub refusals: Arc<Mutex<Vec<RefusedAccess>>>,
}

/// A piece of RAM: guest page, number of pages, page of the backing, whether devices may use it.
pub type Piece = (u64, u64, u64, bool);

impl Memory {
    pub fn new(pieces: &[Piece]) -> Self {
        let size = pieces.iter().map(|(_, pages, _, _)| pages * PAGE_SIZE).sum();
        let table = pieces.iter().map(|(page, pages, backing_page, devices)| RamPiece {
            gpa: GpaRange::new(page * PAGE_SIZE, pages * PAGE_SIZE).unwrap(),
            offset: backing_page * PAGE_SIZE,
            devices: *devices,
        });
        let table = RamTable::new(table, size).unwrap();
        let backing = Arc::new(SharedMemory::new("test", size).unwrap());
        let (plane, writer) = StatePlane::new(size, IN_FLIGHT).unwrap();
        let refusals = Arc::new(Mutex::new(Vec::new()));
        let observer = {
            let refusals = refusals.clone();
            Box::new(move |refused: &RefusedAccess| refusals.lock().unwrap().push(refused.clone()))
        };
        let device = DeviceMemory::new(backing.clone(), table, Guards::new(plane), observer).unwrap();
        Self { device, writer, backing, refusals }
    }

    /// Makes pages private as the product does.
    pub fn make_private(&mut self, range: PageRange) {
        let revoked = self.writer.revoke(range).unwrap();
        let quiesced =
            revoked.quiesce(&WaitForGuards, self.device.guards(), &mut |_| ControlFlow::Continue(())).unwrap();
        self.writer.commit(quiesced);
    }

    /// Writes to the backing, past all guards.
    pub fn fill(&self, page: u64, value: u8) {
        let whole = vec![value; PAGE_SIZE as usize];
        self.backing.mapping().as_volatile_slice().write_slice(&whole, (page * PAGE_SIZE) as usize).unwrap();
    }

    /// The bytes of a page of the backing, past all guards.
    pub fn page(&self, page: u64) -> Vec<u8> {
        let mut whole = vec![0; PAGE_SIZE as usize];
        self.backing.mapping().as_volatile_slice().read_slice(&mut whole, (page * PAGE_SIZE) as usize).unwrap();
        whole
    }
}

pub fn pages(first: u64, end: u64) -> PageRange {
    PageRange::new(first, end).unwrap()
}
