//! The configuration of a machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, Object, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::{BalloonConfig, ConsoleConfig, DiskConfig, NetConfig, PolicyConfig, RngConfig, SerialConfig, VsockConfig};

/// Something that Cloud Hypervisor has and Umbra does not: empty, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Unsupported(pub Value);

impl PartialSchema for Unsupported {
    fn schema() -> RefOr<Schema> {
        // What it may be besides null, which is the field left out.
        AnyOfBuilder::new()
            .item(Object::with_type(Type::Boolean))
            .item(ArrayBuilder::new().items(anything()))
            .item(Object::with_type(Type::Object))
            .description(Some("Empty, or refused."))
            .into()
    }
}

impl ToSchema for Unsupported {}

/// The schema of any JSON. Generators of clients want it said.
pub(crate) fn anything() -> Object {
    Object::with_type(SchemaType::AnyValue)
}

impl Unsupported {
    /// Whether it asks for nothing: null, false, or nothing in it.
    pub fn is_nothing(&self) -> bool {
        match &self.0 {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        }
    }
}

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Processors; one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpusConfig>,
    /// Memory; 512 MiB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryConfig>,
    /// What to boot.
    pub payload: PayloadConfig,
    /// Disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<DiskConfig>>,
    /// Network devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<Vec<NetConfig>>,
    /// Random numbers; from /dev/urandom by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng: Option<RngConfig>,
    /// The balloon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// The serial console; to nowhere by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// The virtio console; none by default, so that nobody loses a terminal who did not offer it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// The socket device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// The platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformConfig>,
    /// What conversions of memory may do. Umbra's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversions: Option<PolicyConfig>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_groups: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generic_vhost_user: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmem: Option<Unsupported>,
    /// Refused unless its mode is Off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_console: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_devices: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdpa: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sgx_epc: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segments: Option<Unsupported>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<Unsupported>,
    /// Accepted without effect, but refused with an IOMMU: the machine has Umbra's own clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtc: Option<Unsupported>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvpanic: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gdb: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landlock_enable: Option<bool>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landlock_rules: Option<Unsupported>,
}

impl VmConfig {
    /// A machine that boots this, and says nothing else.
    pub fn new(payload: PayloadConfig) -> Self {
        Self { payload, ..Self::default() }
    }
}

/// What to boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PayloadConfig {
    /// The kernel: an x86-64 Linux vmlinuz (bzImage) or vmlinux. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line; empty by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initramfs: Option<PathBuf>,
    /// Refused: Umbra boots kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// Refused: Umbra boots kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub igvm: Option<String>,
    /// Refused: no isolation here is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_data: Option<String>,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpusConfig {
    /// How many there are from the start.
    #[schema(minimum = 1)]
    pub boot_vcpus: u8,
    /// The same as boot_vcpus, or refused: none are added later.
    #[schema(minimum = 1)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u8>,
    /// One package of one die with boot_vcpus cores of one thread, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm_hyperv: Option<bool>,
    /// Accepted without effect from 46 on, which clients send, refused below: the guest has the addresses of the host's
    /// processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_phys_bits: Option<u8>,
    /// Accepted without effect: virtualization is hidden from guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested: Option<bool>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Unsupported>,
    /// Refused if it asks for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<CpuFeatures>,
    /// Vm, which clients send, and Off are accepted without effect: the host decides which threads share a core. Others are
    /// refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_scheduling: Option<String>,
}

/// How processors are arranged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuTopology {
    /// One, or refused.
    #[serde(default = "one")]
    pub threads_per_core: u16,
    /// As many as boot_vcpus, or refused.
    #[serde(default = "one")]
    pub cores_per_die: u16,
    /// One, or refused.
    #[serde(default = "one")]
    pub dies_per_package: u16,
    /// One, or refused.
    #[serde(default = "one")]
    pub packages: u16,
}

fn one() -> u16 {
    1
}

/// Features of processors that are off otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuFeatures {
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amx: Option<bool>,
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// Whether no process on the host may be able to map it. Umbra's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmappable: Option<bool>,
    /// Bytes at the end of low RAM that vm.memory-convert may convert, and the guest does not use. Umbra's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Refused unless zero: memory does not grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// Refused unless zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Acpi is accepted without effect, others are refused: memory does not grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_method: Option<String>,
    /// Refused unless false: memory is never offered to the host for merging.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mergeable: Option<bool>,
    /// Accepted without effect: which pages are shared is the guest's to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<bool>,
    /// Refused unless zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefault: Option<bool>,
    /// Refused unless false: memory is taken from the host as the guest touches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<bool>,
    /// Refused unless true: whether pages are huge is the host's setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thp: Option<bool>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zones: Option<Unsupported>,
}

/// What makes memory unmappable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationName {
    /// The strongest that the host offers with `unmappable`, and none without.
    Auto,
    /// Nothing.
    None,
    /// KVM_X86_SW_PROTECTED_VM.
    Software,
}

/// The platform.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlatformConfig {
    /// What makes memory unmappable. Umbra's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationName>,
    /// Whether virtio devices offer VIRTIO_F_ACCESS_PLATFORM; by default where memory is unmappable, which needs it. Umbra's
    /// own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_platform: Option<bool>,
    /// One, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_pci_segments: Option<u16>,
    /// Refused unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_segments: Option<Vec<u16>>,
    /// Accepted without effect: there is no IOMMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_address_width_bits: Option<u8>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_serial_number: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Refused unless empty: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oem_strings: Option<Vec<String>>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_manufacturer: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_product_name: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_version: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_family: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_sku_number: Option<String>,
    /// Refused: the machine has no SMBIOS tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chassis_asset_tag: Option<String>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tdx: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sev_snp: Option<bool>,
    /// Refused unless false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommufd: Option<bool>,
    /// Accepted without effect: there is no VFIO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vfio_p2p_dma: Option<bool>,
}
