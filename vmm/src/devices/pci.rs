//! PCI: one bus, its host bridge, and what functions have in common.
//!
//! ```text
//! ports 0xcf8, 0xcfc ──► Bus ──► Function: configuration space ── ConfigSpace (registers, BAR, capabilities)
//! a device's memory  ──►     ──► Function: its memory BAR       ── Msix (vectors, table, pending bits)
//! ```
//!
//! Configuration goes by mechanism #1 (PCI 3.0, 3.2.2.3.2): 256 bytes a function, one function a slot. A function has
//! one memory BAR of 32 bits, which the guest may put anywhere in the window for it ([`PCI_MEMORY_START`]); elsewhere it is
//! not decoded, so no function ever hides RAM or an interrupt controller. There are no I/O BARs, and no interrupt pins:
//! drivers use MSI-X.
//!
//! Guarantees: any access of any width to any register gives an answer and changes nothing but what a driver may change.

pub mod bus;
pub mod config_space;
pub mod host_bridge;
pub mod msix;

pub use bus::Bus;

#[cfg(doc)]
use arch::x86_64::map::PCI_MEMORY_START;

/// A function of the bus. Called by one vCPU at a time.
pub trait Function: Send {
    /// The guest reads its configuration space. `data` holds all ones.
    fn read_config(&mut self, offset: u8, data: &mut [u8]);

    /// The guest writes its configuration space.
    fn write_config(&mut self, offset: u8, data: &[u8]);

    /// Where its memory is decoded at present, if anywhere: guest physical address.
    fn memory(&self) -> Option<u64> {
        None
    }

    /// Bytes of its memory.
    fn memory_size(&self) -> u64 {
        0
    }

    /// The guest reads its memory. `data` holds zeros. What ends beyond the memory is no error.
    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// The guest writes its memory. What ends beyond the memory is no error.
    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
}
