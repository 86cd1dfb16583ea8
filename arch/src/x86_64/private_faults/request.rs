//! What a conversion request is, and where it can come from.

use hypervisor::{GpaRange, PageState};

use super::Refusal;
use crate::x86_64::MemoryLayout;

/// What brought a conversion about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConversionKind {
    /// The guest announced it.
    Explicit,
    /// An access contradicted the map.
    Implicit,
    /// The operator or the VMM asked for it.
    Host,
}

impl std::fmt::Display for ConversionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Explicit => "explicit",
            Self::Implicit => "implicit",
            Self::Host => "host",
        })
    }
}

/// What said so: the protocol in which a request arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The hypercall KVM_HC_MAP_GPA_RANGE.
    MapGpaRange,
    /// The exit KVM_EXIT_MEMORY_FAULT, or a processor's own report of such an access.
    MemoryFault,
    /// TDX: `TDG.VP.VMCALL<MapGPA>`.
    TdxMapGpa,
    /// SEV-SNP: a page state change, by a GHCB's buffer or by the GHCB MSR.
    SnpPageState,
    /// The operator or the VMM.
    Host,
}

impl Origin {
    /// What a request of this origin is counted as.
    pub fn kind(self) -> ConversionKind {
        match self {
            Self::MapGpaRange | Self::TdxMapGpa | Self::SnpPageState => ConversionKind::Explicit,
            Self::MemoryFault => ConversionKind::Implicit,
            Self::Host => ConversionKind::Host,
        }
    }
}

/// A change of state that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversionRequest {
    /// The range, by RAM's own addresses (no alias, no shared bit, no C-bit). All of it is RAM.
    pub range: GpaRange,
    /// The state it is to have.
    pub to: PageState,
    /// What brought it about.
    pub kind: ConversionKind,
    /// What said so.
    pub origin: Origin,
}

impl ConversionRequest {
    /// A request of this origin, of the kind that such requests are.
    pub fn new(range: GpaRange, to: PageState, origin: Origin) -> Self {
        Self { range, to, kind: origin.kind(), origin }
    }

    /// What a guest announces for a range: a request if all of it is RAM, `None` for what needs nothing done (a shared
    /// range where there is no RAM is shared already), and else a refusal.
    pub(super) fn announced(
        layout: &MemoryLayout,
        range: GpaRange,
        to: PageState,
        origin: Origin,
    ) -> Result<Option<Self>, Refusal> {
        if !layout.converts() {
            return Err(Refusal::NoConversions);
        }
        let ram: u64 = layout.split(range).map(|(_, part)| part.len()).sum();
        match ram {
            0 if to == PageState::Shared => Ok(None),
            ram if ram == range.len() => Ok(Some(Self::new(range, to, origin))),
            _ => Err(Refusal::NotRam { range }),
        }
    }
}
