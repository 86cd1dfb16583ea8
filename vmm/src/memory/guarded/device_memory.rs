//! Guest memory as devices may use it: the shared backing, where RAM lies in it, and the guards.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use hypervisor::SharedMemory;
use vm_memory::MmapRegion;

use super::attribute_map::AttributeMap;
use super::guards::Guards;
use super::ram_table::RamTable;
use super::refusal::RefusedAccess;
use super::sync::Arc;
use super::view::DeviceView;

/// What was put together does not belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a backing of {backing:#x} bytes, an attribute map of {map:#x} and a table of {table:#x} are not of one guest")]
pub struct SizeMismatch {
    /// Size of the shared backing in bytes.
    pub backing: u64,
    /// Size of the attribute map in bytes of RAM.
    pub map: u64,
    /// Size of the backing that the table is of.
    pub table: u64,
}

/// Told of each refused access.
pub type RefusalObserver = dyn Fn(&RefusedAccess) + Send + Sync;

/// Guest memory as devices may use it.
pub struct DeviceMemory {
    mapping: Arc<SharedMemory>,
    map: AttributeMap,
    guards: Arc<Guards>,
    refused: AtomicU64,
    observer: Box<RefusalObserver>,
}

impl DeviceMemory {
    /// Guest memory whose shared backing is `mapping`, with RAM as in `table` and guards on the map of it. `observer` is
    /// told of each refused access, on the device's thread.
    ///
    /// # Errors
    /// A backing, a table and a map that are not all of the same size.
    pub fn new(
        mapping: Arc<SharedMemory>,
        table: RamTable,
        guards: Arc<Guards>,
        observer: Box<RefusalObserver>,
    ) -> std::result::Result<Arc<Self>, SizeMismatch> {
        let map = AttributeMap::new(table, guards.plane().clone())?;
        if mapping.size() != map.table().backing_size() {
            let table = map.table().backing_size();
            return Err(SizeMismatch { backing: mapping.size(), map: table, table });
        }
        Ok(Arc::new(Self { mapping, map, guards, refused: AtomicU64::new(0), observer }))
    }

    /// A view for one thread of a device. `owner` names it in refusals and in reports of waiting conversions.
    pub fn view(self: &Arc<Self>, owner: &str) -> DeviceView {
        DeviceView::new(self, self.guards.handle(owner))
    }

    /// The guards.
    pub fn guards(&self) -> &Arc<Guards> {
        &self.guards
    }

    /// The state of every page, by guest address.
    pub fn map(&self) -> &AttributeMap {
        &self.map
    }

    /// Where RAM lies.
    pub fn table(&self) -> &RamTable {
        self.map.table()
    }

    /// The shared backing.
    pub(super) fn mapping(&self) -> &MmapRegion {
        self.mapping.mapping()
    }

    /// Counts and reports a refused access.
    pub(super) fn refuse(&self, refused: &RefusedAccess) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        (self.observer)(refused);
    }

    /// How many accesses were refused so far.
    pub fn refused_accesses(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMemory").field("guards", &self.guards).finish_non_exhaustive()
    }
}
