//! Listeners: who else maps shared memory, and must not map private memory.
//!
//! An IOMMU for assigned devices, a vhost back end, anything that lets somebody at guest memory without asking a guard. A
//! conversion takes the pages away from each listener before they become private, and gives them to each after they have
//! become shared. RAM that devices never get at is not for listeners either. Listeners are told of whole pieces of RAM, in the order in which they were added, and in reverse order
//! when something is taken away.

use hypervisor::GpaRange;

/// Something that maps shared guest memory.
///
/// The rules: after [`unmap`](ConversionListener::unmap) returns, nothing touches the pages through this listener until
/// [`map`](ConversionListener::map). Mapping what is mapped, or unmapping what is not, does nothing. Neither may call
/// back into guest memory's conversions. Different ranges may be told of by several threads at a time.
pub trait ConversionListener: Send + Sync {
    /// What it is, for errors and logs.
    fn name(&self) -> &str;

    /// Maps pages that are shared now.
    ///
    /// # Errors
    /// Whatever keeps it from that. The conversion to shared is undone then.
    fn map(&self, range: GpaRange) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Unmaps pages that are about to become private.
    fn unmap(&self, range: GpaRange);
}
