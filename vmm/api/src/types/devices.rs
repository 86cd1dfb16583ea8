//! Devices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Unsupported;

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The raw image: a file or a block device. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// Whether the guest may only read it; false by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly: Option<bool>,
    /// Queues; one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub num_queues: Option<u16>,
    /// Entries of a queue, a power of two; 128 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 4, maximum = 1024)]
    pub queue_size: Option<u16>,
    /// Its name among the machine's devices; made up by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The serial number that the guest sees, at most 20 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Raw or Unknown, which is taken for raw; others are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_type: Option<String>,
    /// Refused unless false: the host's page cache is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<bool>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<Unsupported>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_group: Option<String>,
    /// Zero, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// Refused: Umbra chooses the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_affinity: Option<Unsupported>,
    /// Accepted without effect: it is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_io_uring: Option<bool>,
    /// Accepted without effect: it is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_aio: Option<bool>,
    /// Accepted without effect: raw images have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_files: Option<bool>,
    /// Refused unless true: what the guest discards is given back to the host's file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<bool>,
    /// Accepted without effect: the whole image is locked, against all who lock any of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_granularity: Option<String>,
}

/// A network device, on a tap of the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The tap; the host names a new one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The IPv4 address of the host's side; left alone by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Its mask; 255.255.255.0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// The guest's hardware address; made up by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The largest packet in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Queues, two for each pair; two by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 2)]
    pub num_queues: Option<u16>,
    /// Entries of a queue, a power of two; 256 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16, maximum = 1024)]
    pub queue_size: Option<u16>,
    /// Its name among the machine's devices; made up by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether TCP segmentation may be left to the other side; true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_tso: Option<bool>,
    /// Whether UDP segmentation may be left to the other side; true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_ufo: Option<bool>,
    /// Whether checksums may be left to the other side; true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_csum: Option<bool>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_mac: Option<String>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<bool>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Accepted without effect: there is no vhost-user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_mode: Option<String>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<i32>>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<Unsupported>,
    /// Zero, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// Refused: Umbra chooses the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

/// A socket device, with a unix socket on the host's side.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context identifier.
    #[schema(minimum = 3, maximum = 4294967294u32)]
    pub cid: u64,
    /// The socket that hosts connect to.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// Its name among the machine's devices; made up by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// Zero, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// Refused: Umbra chooses the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

/// Where random numbers come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {
    /// The file that is read.
    #[schema(value_type = String)]
    pub src: PathBuf,
    /// Accepted without effect: there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// Zero, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// Refused: Umbra chooses the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

/// A balloon.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Bytes that the guest is to give back from the start.
    pub size: u64,
    /// Whether the guest may take memory back when it runs out; false by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deflate_on_oom: Option<bool>,
    /// Whether the guest reports pages that it does not use; false by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_page_reporting: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<bool>,
    /// Accepted without effect: there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// Zero, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// Refused: Umbra chooses the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

/// Where a console goes. Pty and Socket are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub enum ConsoleMode {
    /// There is none.
    Off,
    /// A new pseudo-terminal.
    Pty,
    /// Standard input and output.
    Tty,
    /// A file, output only.
    File,
    /// A unix socket.
    Socket,
    /// Nowhere.
    Null,
}

/// The virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where it goes.
    pub mode: ConsoleMode,
    /// The file, with mode File.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Accepted without effect: there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// Zero, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// Refused: Umbra chooses the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

/// The serial console. Off is the same as Null: the port is there, and swallows what is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// Where it goes.
    pub mode: ConsoleMode,
    /// The file, with mode File.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
}
