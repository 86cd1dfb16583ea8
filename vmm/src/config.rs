//! What a machine is made of, as the operator says it.

use std::path::PathBuf;

use arch::x86_64::Isolation;
use hypervisor::MemoryCaps;

use crate::memory::conversion::Policy;
use crate::{Error, Result};

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The kernel: a vmlinuz or a vmlinux.
    pub kernel: PathBuf,
    /// The initramfs, if any.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// What makes it unmappable; `None` for the strongest that the host offers if memory is to be unmappable, and for
    /// nothing if not.
    pub isolation: Option<Isolation>,
    /// What conversions of guest memory may do.
    pub conversions: Policy,
    /// The serial console.
    pub serial: SerialConfig,
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// Whether it is user-unmappable; `None` if the isolation says so: it is, if an isolation other than none is named.
    pub unmappable: Option<bool>,
}

/// Where the serial console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// Standard input and output.
    Tty,
    /// A file, output only.
    File(PathBuf),
    /// Nowhere.
    Null,
}

impl VmConfig {
    /// The isolation to use on a host with these capabilities. Never weaker than what was asked for.
    ///
    /// # Errors
    /// Options that contradict each other, and a host that can't do it.
    pub fn resolve_isolation(&self, caps: &MemoryCaps) -> Result<Isolation> {
        let isolation = match (self.isolation, self.memory.unmappable) {
            (Some(Isolation::None), Some(true)) => {
                return Err(Error::Contradiction(
                    "unmappable=on and isolation=none contradict each other: choose isolation=auto or software",
                ));
            }
            (Some(isolation), Some(false)) if isolation.is_unmappable() => {
                return Err(Error::Contradiction(
                    "unmappable=off and an isolation other than none contradict each other: leave one of them out",
                ));
            }
            (Some(isolation), _) => isolation,
            (None, Some(true)) => Isolation::strongest(caps),
            (None, _) => Isolation::None,
        };
        match isolation.missing(caps) {
            missing if missing.is_empty() => Ok(isolation),
            missing => Err(Error::IsolationMissing { isolation, missing }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::model::ModelHypervisor;
    use hypervisor::{Hypervisor, VmType};

    fn caps(vm_types: &[VmType]) -> MemoryCaps {
        MemoryCaps { vm_types: vm_types.to_vec(), ..ModelHypervisor::new().caps().clone() }
    }

    fn config(isolation: Option<Isolation>, unmappable: Option<bool>) -> VmConfig {
        VmConfig {
            kernel: "vmlinuz".into(),
            initramfs: None,
            command_line: String::new(),
            memory: MemoryConfig { size: 512 << 20, unmappable },
            isolation,
            conversions: Policy::default(),
            serial: SerialConfig::Null,
        }
    }

    #[test]
    fn unmappable_memory_is_never_silently_left_out() {
        let able = caps(&[VmType::Default, VmType::SwProtected]);
        let unable = caps(&[VmType::Default]);
        for isolation in [None, Some(Isolation::Software)] {
            let config = config(isolation, Some(true));
            assert_eq!(config.resolve_isolation(&able).unwrap(), Isolation::Software);
            assert!(config.resolve_isolation(&unable).is_err());
        }
        let error = config(Some(Isolation::Software), None).resolve_isolation(&unable).unwrap_err().to_string();
        assert!(
            error.contains("KVM_CAP_VM_TYPES:sw-protected") && error.contains("CONFIG_KVM_SW_PROTECTED_VM"),
            "{error}"
        );
    }

    #[test]
    fn contradictions_are_errors() {
        let able = caps(&[VmType::Default, VmType::SwProtected]);
        assert!(config(Some(Isolation::None), Some(true)).resolve_isolation(&able).is_err());
        assert!(config(Some(Isolation::Software), Some(false)).resolve_isolation(&able).is_err());
    }

    #[test]
    fn ordinary_memory_is_the_default() {
        let able = caps(&[VmType::Default, VmType::SwProtected]);
        for unmappable in [None, Some(false)] {
            assert_eq!(config(None, unmappable).resolve_isolation(&able).unwrap(), Isolation::None);
        }
    }
}
