//! Answers.

use std::collections::BTreeMap;

use arch::x86_64::Isolation;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmConfig;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct Ping {
    /// The program and its version.
    pub build_version: String,
    /// The version.
    pub version: String,
    /// The process.
    pub pid: i64,
    /// What was built in.
    pub features: Vec<String>,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub enum VmState {
    /// It has a configuration, and has not been booted.
    Created,
    /// It runs.
    Running,
    /// It has run, and can be booted again.
    Shutdown,
    /// It stands still.
    Paused,
}

/// What makes memory unmappable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationInUse {
    /// Nothing: it can be mapped.
    None,
    /// KVM_X86_SW_PROTECTED_VM.
    Software,
}

impl From<Isolation> for IsolationInUse {
    fn from(from: Isolation) -> Self {
        match from {
            Isolation::None => Self::None,
            Isolation::Software => Self::Software,
        }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct VmInfo {
    /// As it was created, and changed since.
    pub config: VmConfig,
    /// Where it is in its life.
    pub state: VmState,
    /// What makes the memory of one that is booted unmappable, which the configuration may have left open; null before it
    /// is booted, and when it is over. Umbra's own.
    pub isolation: Option<IsolationInUse>,
    /// Bytes of RAM, without those that the guest has given back by its balloon.
    pub memory_actual_size: u64,
    /// The devices of one that runs, by name.
    pub device_tree: BTreeMap<String, DeviceNode>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct DeviceNode {
    /// Its name.
    pub id: String,
    /// Not told: always empty.
    #[schema(value_type = Vec<Object>)]
    pub resources: Vec<serde_json::Value>,
    /// Not told: always empty.
    pub children: Vec<String>,
    /// Where it is on the PCI bus.
    pub pci_bdf: Option<String>,
}

/// A device that was added.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct PciDeviceInfo {
    /// Its name.
    pub id: String,
    /// Where it is on the PCI bus, such as 0000:00:06.0.
    pub bdf: String,
}

/// What devices count, by device and counter.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;
