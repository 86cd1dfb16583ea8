//! What makes guest RAM unmappable, and what the host must have for it.

use std::fmt;
use std::str::FromStr;

use hypervisor::{Capability, MemoryCaps, VmType};

/// What makes the guest's RAM unmappable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Nothing: all RAM is shared for good.
    None,
    /// Two aliases of RAM. The guest believes that it is a plain SEV guest; the C-bit of its page tables chooses between
    /// a private and a shared alias. Needs no hardware for confidential computing.
    Software,
}

impl Isolation {
    /// Every isolation, the strongest last.
    pub const ALL: [Self; 2] = [Self::None, Self::Software];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Software => "software",
        }
    }

    /// The type of VM it runs in.
    pub fn vm_type(self) -> VmType {
        match self {
            Self::None => VmType::Default,
            Self::Software => VmType::SwProtected,
        }
    }

    /// Whether its RAM is unmappable.
    pub fn is_unmappable(self) -> bool {
        self != Self::None
    }

    /// What the host must have for it.
    pub fn requirements(self) -> &'static [Capability] {
        match self {
            Self::None => &[Capability::VmType(VmType::Default)],
            Self::Software => &[
                Capability::AmdProcessor,
                Capability::VmType(VmType::SwProtected),
                Capability::UserMemory2,
                Capability::GuestMemfd,
                Capability::MemoryAttributes,
                Capability::MemoryFaultInfo,
                Capability::ExitHypercall,
                Capability::UserSpaceMsr,
                Capability::MsrFilter,
            ],
        }
    }

    /// Which of its requirements this host lacks.
    pub fn missing(self, caps: &MemoryCaps) -> Vec<Capability> {
        self.requirements().iter().copied().filter(|capability| !caps.has(*capability)).collect()
    }

    /// The strongest isolation with unmappable RAM that this host offers, or if it offers none, the one that it lacks
    /// least for.
    pub fn strongest(caps: &MemoryCaps) -> Self {
        let unmappable = Self::ALL.into_iter().rev().filter(|isolation| isolation.is_unmappable());
        unmappable.min_by_key(|isolation| isolation.missing(caps).len()).unwrap_or(Self::Software)
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no isolation.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no isolation {0:?}: choose none or software")]
pub struct UnknownIsolation(String);

impl FromStr for Isolation {
    type Err = UnknownIsolation;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|isolation| isolation.name() == name)
            .ok_or_else(|| UnknownIsolation(name.to_owned()))
    }
}
