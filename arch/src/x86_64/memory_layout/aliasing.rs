//! Where the guest sees a range of RAM, and how isolations differ in that.

use std::fmt;

use hypervisor::PageState;

use crate::x86_64::Isolation;
use crate::x86_64::map::LOW_END;

/// What KVM's attribute is on the pages of an alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttributeRule {
    /// This, whatever the state of the page.
    Fixed(PageState),
    /// The state of the page.
    Follows,
}

/// A place where the guest sees a range of RAM: one memory slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// Slot number.
    pub slot: u32,
    /// How far above the range's own address it lies, in bytes.
    pub offset: u64,
    /// Whether the shared backing is behind it.
    pub shared: bool,
    /// Whether the private backing is behind it.
    pub private: bool,
    /// What the attribute is there.
    pub attribute: AttributeRule,
}

/// Which aliases every range of a layout has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aliasing {
    /// One, shared for good (`none`).
    SharedOnly,
    /// One for each state, with that state's backing (`software`).
    OnePerState,
    /// One with both backings, which follows the state.
    OneForBoth,
}

impl Aliasing {
    /// Whether pages can change their state.
    pub fn converts(self) -> bool {
        self != Self::SharedOnly
    }

    /// Whether the highest address bit of the guest's page tables chooses the alias.
    pub(super) fn takes_an_address_bit(self) -> bool {
        self == Self::OnePerState
    }

    /// Whether RAM below [`LOW_END`], where processors start, is a range of its own that stays open.
    pub(super) fn keeps_low_memory_open(self) -> bool {
        self == Self::OnePerState
    }

    /// The aliases of a range at `start`, which take slot numbers from `slot` on.
    pub(super) fn aliases(self, start: u64, c_bit: Option<u8>, slot: &mut u32) -> Vec<Alias> {
        let fixed = AttributeRule::Fixed;
        let shared = Alias { slot: 0, offset: 0, shared: true, private: false, attribute: fixed(PageState::Shared) };
        let mut aliases = match self {
            Self::SharedOnly => vec![shared],
            Self::OneForBoth => vec![Alias { private: true, attribute: AttributeRule::Follows, ..shared }],
            Self::OnePerState => {
                let open = start < LOW_END;
                let rule = if open { shared.attribute } else { AttributeRule::Follows };
                let offset = c_bit.map_or(0, |bit| 1 << bit);
                let private =
                    Alias { offset, shared: false, private: true, attribute: fixed(PageState::Private), ..shared };
                vec![Alias { attribute: rule, ..shared }, private]
            }
        };
        for alias in &mut aliases {
            alias.slot = *slot;
            *slot += 1;
        }
        aliases
    }
}

impl From<Isolation> for Aliasing {
    fn from(isolation: Isolation) -> Self {
        match isolation {
            Isolation::None => Self::SharedOnly,
            Isolation::Software => Self::OnePerState,
        }
    }
}

impl fmt::Display for Aliasing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SharedOnly => "isolation=none",
            Self::OnePerState => "isolation=software",
            Self::OneForBoth => "one alias for both states",
        })
    }
}
