//! Why a conversion was not made.

use arch::x86_64::msr::Facility;
use arch::x86_64::private_faults::ConversionKind;
use hypervisor::{GpaRange, PageState};

use crate::memory::guarded::{ChangeError, PlaneError};

/// Why a conversion was not made.
///
/// Unless it [is fatal](ConversionError::is_fatal), what the error names is as it was, and everything agrees.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// The policy forbids it.
    #[error("{kind} conversions are refused by policy")]
    Refused {
        /// What kind it is.
        kind: ConversionKind,
    },
    /// The hypervisor is using a page of the range for the guest.
    #[error("{range} holds memory that the hypervisor uses for vCPU {vcpu} ({facility:?})")]
    Lent {
        /// The range.
        range: GpaRange,
        /// The vCPU.
        vcpu: u8,
        /// What for.
        facility: Facility,
    },
    /// A step failed; all that was done to its pages is undone.
    #[error("cannot convert {range} to {to}")]
    Failed {
        /// The pages that stay as they were.
        range: GpaRange,
        /// The state they were to have.
        to: PageState,
        /// Why.
        #[source]
        source: hypervisor::Error,
    },
    /// Nothing here can be private.
    #[error("cannot make {range} private: this guest's memory is all shared, for good")]
    NotConvertible {
        /// The range.
        range: GpaRange,
    },
    /// A listener can't map the pages; all that was done to them is undone.
    #[error("cannot make {range} shared: {listener} can't map it")]
    Unmappable {
        /// The pages that stay private.
        range: GpaRange,
        /// The listener.
        listener: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The attribute map does not take the change. Nothing that converts should cause it.
    #[error("cannot convert {range}")]
    Map {
        /// The pages that stay as they are.
        range: GpaRange,
        /// Why.
        #[source]
        source: ChangeError,
    },
    /// The host does not take back memory that the pages have left, so they can't be used again.
    #[error("cannot convert {range}: the host does not take back memory that was left")]
    Owed {
        /// The pages that stay as they are.
        range: GpaRange,
        /// Why.
        #[source]
        source: hypervisor::Error,
    },
    /// A step failed, and so did its undo. The machine must stop.
    #[error("{range} is left between private and shared, and the guest can't go on")]
    Inconsistent {
        /// The pages.
        range: GpaRange,
        /// Why the undo failed.
        #[source]
        source: hypervisor::Error,
    },
    /// The machine pauses. Pieces before the one that was to be next are converted; the same request does the rest later.
    #[error("the conversion was interrupted: the machine pauses")]
    Interrupted,
    /// An earlier conversion left the machine inconsistent, or the machine is ending.
    #[error("the machine is ending, or an earlier conversion failed half-way")]
    Stopped,
}

impl ConversionError {
    /// Whether the machine must stop.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Inconsistent { .. } | Self::Stopped)
    }
}

/// Why guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// There is no attribute map for this much memory.
    #[error("cannot make an attribute map")]
    Map(#[from] PlaneError),
    /// The layout is not one.
    #[error("the layout of guest memory contradicts itself")]
    Layout(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No thread for discards.
    #[error("cannot start the thread that gives memory back")]
    Thread(#[source] std::io::Error),
}
