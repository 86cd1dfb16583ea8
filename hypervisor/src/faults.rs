//! Failures that a test orders in advance: "the third discard fails with ENOMEM".
//!
//! Each backend counts its calls to the system by [`Operation`] and asks its [`Faults`] before it makes one. A
//! [`Failure`] that is due takes the call's place: the system isn't called, and the operation ends as if it had been and
//! had answered so. The one exception is [`Failure::partly`], which has a part of the work done first.
//!
//! The model always asks. KVM asks only in a build with the cargo feature `failure-injection`, which is off by default:
//! a product has no such code.
//!
//! ```
//! use hypervisor::faults::{Failure, Faults, Operation};
//!
//! let faults = Faults::default();
//! // Two calls go well, the next two do not, and from then on all do.
//! faults.fail(Operation::SetAttribute, Failure::new(libc::ENOMEM).after(2).times(2));
//! assert_eq!(faults.calls(Operation::SetAttribute), 0);
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{AttributeError, PreFaultError};
use crate::{Backing, Error, GpaRange, PAGE_SIZE, PageState, Result};

/// What can be made to fail, and is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`crate::Vm::set_attribute`].
    SetAttribute,
    /// [`crate::Vm::discard`] of shared memory.
    DiscardShared,
    /// [`crate::Vm::discard`] of private memory.
    DiscardPrivate,
    /// [`crate::Vm::add_region`].
    AddRegion,
    /// [`crate::Vm::remove_region`].
    RemoveRegion,
    /// [`crate::Vm::create_guest_memfd`].
    CreateGuestMemfd,
    /// [`crate::Vcpu::run`].
    Run,
    /// [`crate::Vcpu::pre_fault`].
    PreFault,
    /// [`crate::Vcpu::inject_general_protection`].
    Inject,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SetAttribute,
        Self::DiscardShared,
        Self::DiscardPrivate,
        Self::AddRegion,
        Self::RemoveRegion,
        Self::CreateGuestMemfd,
        Self::Run,
        Self::PreFault,
        Self::Inject,
    ];

    /// What a discard of this backing counts as.
    pub(crate) fn discard_of(backing: &Backing) -> Self {
        match backing {
            Backing::Shared(_) => Self::DiscardShared,
            Backing::Private(_) => Self::DiscardPrivate,
        }
    }
}

/// How and when an operation fails. Without further ado: its next call, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    errno: i32,
    /// Calls to let through first.
    skip: u64,
    /// Calls to fail then; `None` for all.
    times: Option<u64>,
    done: u64,
}

impl Failure {
    /// Fails with this error number, any at all.
    pub fn new(errno: i32) -> Self {
        Self { errno, skip: 0, times: Some(1), done: 0 }
    }

    /// Lets so many calls through first, counted from when this failure's turn comes.
    pub fn after(self, calls: u64) -> Self {
        Self { skip: calls, ..self }
    }

    /// Fails so many calls in a row.
    pub fn times(self, calls: u64) -> Self {
        Self { times: Some(calls), ..self }
    }

    /// Fails every call from there on.
    pub fn always(self) -> Self {
        Self { times: None, ..self }
    }

    /// Does so many bytes of the work first: whole pages, and never all of it. For [`Operation::SetAttribute`] with
    /// EAGAIN (the error is then [`AttributeError::Again`]) and for [`Operation::PreFault`] (which then succeeds in part,
    /// as it does in the kernel); all other failures do nothing.
    pub fn partly(self, bytes: u64) -> Self {
        Self { done: bytes, ..self }
    }

    /// The part of `range` to do first.
    fn part(self, range: GpaRange) -> Option<GpaRange> {
        let done = self.done.min(range.len() - PAGE_SIZE);
        GpaRange::new(range.start(), done & !(PAGE_SIZE - 1)).ok()
    }
}

/// What is ordered and what was counted for one operation.
#[derive(Debug, Default)]
struct Record {
    calls: u64,
    failures: u64,
    ordered: VecDeque<Failure>,
}

impl Record {
    fn call(&mut self) -> Option<Failure> {
        self.calls += 1;
        while let Some(failure) = self.ordered.front_mut() {
            if failure.skip > 0 {
                failure.skip -= 1;
                return None;
            }
            match &mut failure.times {
                Some(0) => {
                    self.ordered.pop_front();
                    continue;
                }
                Some(times) => *times -= 1,
                None => {}
            }
            self.failures += 1;
            return Some(*failure);
        }
        None
    }
}

/// The failures ordered of a hypervisor, its VMs and its vCPUs, and the count of their calls. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    records: Arc<Mutex<[Record; Operation::ALL.len()]>>,
}

impl Faults {
    /// Orders a failure. Several of one operation take turns: one begins to count when the one before it is over.
    pub fn fail(&self, operation: Operation, failure: Failure) {
        self.records()[operation as usize].ordered.push_back(failure);
    }

    /// Takes all orders back. The counts stay.
    pub fn clear(&self) {
        for record in self.records().iter_mut() {
            record.ordered.clear();
        }
    }

    /// How often the operation was called, failed calls included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.records()[operation as usize].calls
    }

    /// How often it was made to fail.
    pub fn failures(&self, operation: Operation) -> u64 {
        self.records()[operation as usize].failures
    }

    fn records(&self) -> MutexGuard<'_, [Record; Operation::ALL.len()]> {
        // Counting does not panic.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, operation: Operation) -> Option<Failure> {
        self.records()[operation as usize].call()
    }

    /// Counts a call; the error number if it is to fail.
    pub(crate) fn before(&self, operation: Operation) -> std::result::Result<(), i32> {
        self.call(operation).map_or(Ok(()), |failure| Err(failure.errno))
    }

    /// Sets an attribute by `set`, or fails.
    pub(crate) fn set_attribute(
        &self,
        range: GpaRange,
        state: PageState,
        set: impl Fn(GpaRange) -> Result<()>,
    ) -> Result<()> {
        let Some(failure) = self.call(Operation::SetAttribute) else { return set(range) };
        let mut source = AttributeError::from_errno(failure.errno);
        if failure.errno == libc::EAGAIN {
            let part = failure.part(range);
            part.map_or(Ok(()), set)?;
            source = AttributeError::Again { done: part.map_or(0, GpaRange::len) };
        }
        Err(Error::Attribute { range, state, source })
    }

    /// Populates memory by `populate`, or fails.
    pub(crate) fn pre_fault(&self, range: GpaRange, populate: impl Fn(GpaRange) -> Result<u64>) -> Result<u64> {
        let Some(failure) = self.call(Operation::PreFault) else { return populate(range) };
        match failure.part(range) {
            Some(part) => populate(part),
            None => Err(Error::PreFault { range, source: PreFaultError::from_errno(failure.errno) }),
        }
    }

    /// Discards memory by `discard`, or fails.
    pub(crate) fn discard(&self, backing: &Backing, offset: u64, size: u64) -> Result<()> {
        match self.before(Operation::discard_of(backing)) {
            Ok(()) => backing.discard(offset, size),
            Err(errno) => Err(backing.discard_failed(offset, size, io::Error::from_raw_os_error(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn outcomes(faults: &Faults, operation: Operation, calls: usize) -> Vec<i32> {
        (0..calls).map(|_| faults.before(operation).err().unwrap_or(0)).collect()
    }

    #[test]
    fn failures_come_when_they_are_due_and_take_turns() {
        let faults = Faults::default();
        faults.fail(Operation::Run, Failure::new(4).after(1));
        faults.fail(Operation::Run, Failure::new(5).after(2).times(2));
        faults.fail(Operation::Run, Failure::new(6).always());
        assert_eq!(outcomes(&faults, Operation::Run, 8), [0, 4, 0, 0, 5, 5, 6, 6]);
        assert_eq!((faults.calls(Operation::Run), faults.failures(Operation::Run)), (8, 5));
        faults.clear();
        assert_eq!(outcomes(&faults, Operation::Run, 2), [0, 0]);
        assert_eq!((faults.calls(Operation::Run), faults.failures(Operation::Run)), (10, 5));
    }

    #[test]
    fn each_operation_has_its_own() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
            let faults = Faults::default();
            faults.clone().fail(operation, Failure::new(7));
            for other in Operation::ALL.into_iter().filter(|other| *other != operation) {
                assert_eq!(outcomes(&faults, other, 1), [0]);
            }
            assert_eq!(outcomes(&faults, operation, 2), [7, 0]);
        }
    }

    #[test]
    fn again_does_whole_pages_and_never_all() {
        let range = GpaRange::new(0x10000, 4 * PAGE_SIZE).unwrap();
        for (asked, expected) in [(0, 0), (1, 0), (PAGE_SIZE + 1, 1), (4 * PAGE_SIZE, 3), (u64::MAX, 3)] {
            let faults = Faults::default();
            faults.fail(Operation::SetAttribute, Failure::new(libc::EAGAIN).partly(asked));
            let set = Cell::new(0);
            let count = |part: GpaRange| {
                assert_eq!(part.start(), range.start());
                set.set(part.pages());
                Ok(())
            };
            let Err(Error::Attribute { source: AttributeError::Again { done }, .. }) =
                faults.set_attribute(range, PageState::Private, count)
            else {
                panic!("not EAGAIN");
            };
            assert_eq!((set.get(), done), (expected, expected * PAGE_SIZE), "{asked:#x}");
            faults.set_attribute(range, PageState::Private, count).unwrap();
            assert_eq!(set.get(), 4);
        }
    }

    #[test]
    fn other_failures_of_an_attribute_do_nothing() {
        let range = GpaRange::new(0, 4 * PAGE_SIZE).unwrap();
        for errno in [libc::ENOMEM, libc::EINTR, libc::EIO, libc::EINVAL] {
            let faults = Faults::default();
            faults.fail(Operation::SetAttribute, Failure::new(errno).partly(PAGE_SIZE));
            let error = faults.set_attribute(range, PageState::Private, |_| panic!("called")).unwrap_err();
            assert_eq!(error.errno(), Some(errno));
        }
    }

    #[test]
    fn a_pre_fault_in_part_succeeds_with_less() {
        let range = GpaRange::new(0, 4 * PAGE_SIZE).unwrap();
        let faults = Faults::default();
        faults.fail(Operation::PreFault, Failure::new(libc::EINTR));
        faults.fail(Operation::PreFault, Failure::new(libc::EINTR).partly(PAGE_SIZE));
        let populate = |part: GpaRange| Ok(part.len());
        assert_eq!(faults.pre_fault(range, populate).unwrap_err().errno(), Some(libc::EINTR));
        assert_eq!(faults.pre_fault(range, populate).unwrap(), PAGE_SIZE);
        assert_eq!(faults.pre_fault(range, populate).unwrap(), 4 * PAGE_SIZE);
    }
}
