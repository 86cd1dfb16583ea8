//! The thin layer between KVM's system calls and the failures that tests order ([`crate::faults`]).
//!
//! Without the cargo feature `failure-injection` it is nothing: an empty type, whose functions make the call.

use vmm_sys_util::errno;

#[cfg(feature = "failure-injection")]
use crate::faults::Faults;
use crate::faults::Operation;
use crate::{Backing, GpaRange, PageState, Result};

#[derive(Debug, Clone, Default)]
pub(super) struct Injected {
    #[cfg(feature = "failure-injection")]
    faults: Faults,
}

#[cfg(feature = "failure-injection")]
impl Injected {
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// To be called before the system is.
    pub(super) fn before(&self, operation: Operation) -> std::result::Result<(), errno::Error> {
        self.faults.before(operation).map_err(errno::Error::new)
    }

    pub(super) fn set_attribute(
        &self,
        range: GpaRange,
        state: PageState,
        set: impl Fn(GpaRange) -> Result<()>,
    ) -> Result<()> {
        self.faults.set_attribute(range, state, set)
    }

    pub(super) fn discard(&self, backing: &Backing, offset: u64, size: u64) -> Result<()> {
        self.faults.discard(backing, offset, size)
    }

    pub(super) fn pre_fault(&self, range: GpaRange, populate: impl Fn(GpaRange) -> Result<u64>) -> Result<u64> {
        self.faults.pre_fault(range, populate)
    }
}

#[cfg(not(feature = "failure-injection"))]
impl Injected {
    pub(super) fn before(&self, _: Operation) -> std::result::Result<(), errno::Error> {
        Ok(())
    }

    pub(super) fn set_attribute(
        &self,
        range: GpaRange,
        _: PageState,
        set: impl Fn(GpaRange) -> Result<()>,
    ) -> Result<()> {
        set(range)
    }

    pub(super) fn discard(&self, backing: &Backing, offset: u64, size: u64) -> Result<()> {
        backing.discard(offset, size)
    }

    pub(super) fn pre_fault(&self, range: GpaRange, populate: impl Fn(GpaRange) -> Result<u64>) -> Result<u64> {
        populate(range)
    }
}
