//! What requests and answers look like. One definition is both the JSON form and the schema in the document.
//!
//! Names and types are Cloud Hypervisor's (its `cloud-hypervisor.yaml` and the fields that `ch-remote` sends). Whatever is not
//! listed is an error: a client that misspells a field learns of it. `null` is the same as a field left out.

mod answers;
mod config;
mod devices;
mod memory;
mod requests;

pub use answers::{Counters, DeviceNode, IsolationInUse, PciDeviceInfo, Ping, VmInfo, VmState};
pub(crate) use config::anything;
pub use config::{
    CpuFeatures, CpuTopology, CpusConfig, IsolationName, MemoryConfig, PayloadConfig, PlatformConfig, Unsupported,
    VmConfig,
};
pub use devices::{
    BalloonConfig, ConsoleConfig, ConsoleMode, DiskConfig, NetConfig, RngConfig, SerialConfig, VsockConfig,
};
pub use memory::{
    Contents, ConversionAnswer, ConversionRequest, Fate, Latency, MemoryMap, MemoryRun, MemoryStats, PolicyConfig,
    State,
};
pub use requests::{RemoveDevice, Resize};
