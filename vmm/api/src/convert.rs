//! From the API's configuration to `vmm::config`.
//!
//! Each field is honoured, accepted without effect because nothing depends on it here, or refused by an error that names it
//! and says what to do. Nothing is left out in silence. `tests/fields.rs` has the table.

mod devices;
mod machine;
mod policy;
mod unsaid;

pub use policy::rule_text;
pub(crate) use unsaid::fill_in;

/// A field that can't be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConfigError {
    /// Its name, with dots.
    pub field: String,
    /// Why, and what to do.
    pub reason: String,
    /// Whether it could be had, were it not for what the machine has besides.
    pub clashes: bool,
}

impl ConfigError {
    /// An error about this field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), clashes: false }
    }

    /// An error about this field that is due to another part of the configuration.
    pub fn clash(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { clashes: true, ..Self::new(field, reason) }
    }

    /// The same of a field inside another.
    #[must_use]
    pub fn inside(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

/// Refuses a field if it is given.
fn refuse(field: &str, given: bool, reason: &str) -> Result<(), ConfigError> {
    if given { Err(ConfigError::new(field, reason)) } else { Ok(()) }
}

/// What every PCI device may say of its place.
fn refuse_place(iommu: Option<bool>, segment: Option<u16>, device: Option<u8>) -> Result<(), ConfigError> {
    refuse("iommu", iommu == Some(true), "there is no virtual IOMMU: leave it out")?;
    refuse("pci_segment", segment.is_some_and(|segment| segment != 0), "there is one PCI segment, 0")?;
    refuse("pci_device_id", device.is_some(), "the slot is chosen for you: leave it out")
}

/// Whether this is the name of a device that can't be removed.
pub(crate) fn is_fixed(id: &str) -> bool {
    ["_rng", "_console", "_balloon"].iter().any(|kind| id.starts_with(kind))
}

/// A name of a device.
fn check_id(id: Option<&str>) -> Result<(), ConfigError> {
    let fine = |id: &str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    refuse("id", id.is_some_and(|id| !fine(id)), "a name has 1 to 64 letters, digits, dots, hyphens or underscores")?;
    refuse("id", id.is_some_and(is_fixed), "names of devices that always stay begin so: choose another")
}
