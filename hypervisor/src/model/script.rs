//! What a model's vCPU does instead of instructions, and what comes of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hypercall::Answer;
use super::privateness::Address;

/// One thing that a guest does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Reads so many bytes.
    Read {
        /// From here on.
        at: Address,
        /// How many.
        len: usize,
    },
    /// Writes bytes.
    Write {
        /// From here on.
        at: Address,
        /// Which.
        data: Vec<u8>,
    },
    /// Fetches an instruction.
    Execute {
        /// From here.
        at: Address,
    },
    /// Announces a conversion: KVM_HC_MAP_GPA_RANGE of a plain guest, a page state change of an SEV-SNP guest, MapGPA of
    /// a TDX guest.
    MapGpaRange {
        /// First guest physical address; of a TDX guest, with the bit that makes it a shared one.
        gpa: u64,
        /// Number of 4-KiB pages.
        pages: u64,
        /// Attributes. A TDX guest has none: the address says which state is meant.
        attributes: u64,
    },
    /// Writes a port.
    PortWrite {
        /// Its number.
        port: u16,
        /// 1, 2 or 4 bytes.
        data: Vec<u8>,
    },
    /// Reads an MSR.
    ReadMsr {
        /// Its number.
        index: u32,
    },
    /// Writes an MSR.
    WriteMsr {
        /// Its number.
        index: u32,
        /// What to write.
        value: u64,
    },
}

impl Action {
    /// Reads `len` bytes.
    pub fn read(at: impl Into<Address>, len: usize) -> Self {
        Self::Read { at: at.into(), len }
    }

    /// Writes these bytes.
    pub fn write(at: impl Into<Address>, data: impl Into<Vec<u8>>) -> Self {
        Self::Write { at: at.into(), data: data.into() }
    }

    /// Fetches an instruction.
    pub fn execute(at: impl Into<Address>) -> Self {
        Self::Execute { at: at.into() }
    }
}

/// What came of an [`Action`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The bytes read.
    Read(Vec<u8>),
    /// All bytes are written.
    Written,
    /// The instruction was fetched.
    Executed,
    /// The answer to a conversion request.
    Answered(Answer),
    /// The VMM has what was written to the port.
    PortWritten,
    /// The value of an MSR.
    MsrRead(u64),
    /// The MSR is written.
    MsrWritten,
    /// The guest took a general protection fault instead, and goes on with the next action. What an access did before
    /// the page that faulted is done.
    GeneralProtection,
}

#[derive(Debug, Default)]
struct State {
    actions: VecDeque<Action>,
    outcomes: Vec<Outcome>,
    /// How often the script was cleared.
    cleared: u64,
}

/// The script of one vCPU: a queue of actions, and the outcomes so far. Clones are the same one, and it may grow while
/// the vCPU runs. A vCPU whose script is at its end halts.
#[derive(Debug, Clone, Default)]
pub struct Script(Arc<Mutex<State>>);

impl Script {
    /// Adds an action at the end.
    pub fn push(&self, action: Action) {
        self.state().actions.push_back(action);
    }

    /// Adds actions at the end.
    pub fn extend(&self, actions: impl IntoIterator<Item = Action>) {
        self.state().actions.extend(actions);
    }

    /// What came of the actions, in their order, since this was last asked.
    pub fn take_outcomes(&self) -> Vec<Outcome> {
        std::mem::take(&mut self.state().outcomes)
    }

    /// How many actions the vCPU has not begun.
    pub fn waiting(&self) -> usize {
        self.state().actions.len()
    }

    /// Forgets all actions. The one in progress is given up when the vCPU runs next, and has no outcome.
    pub fn clear(&self) {
        let mut state = self.state();
        state.actions.clear();
        state.cleared += 1;
    }

    /// The next action, and what [`Script::cleared`] says of it.
    pub(super) fn next(&self) -> Option<(u64, Action)> {
        let mut state = self.state();
        Some((state.cleared, state.actions.pop_front()?))
    }

    /// How often the script was cleared: an action that was begun before the last time is given up.
    pub(super) fn cleared(&self) -> u64 {
        self.state().cleared
    }

    pub(super) fn record(&self, outcome: Outcome) {
        self.state().outcomes.push(outcome);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way; `extend` may, with all that came before in place.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
