//! What a host can do with guest memory, probed once, each missing piece with a name and a remedy.

use std::fmt;

/// The type of a VM: what makes its memory private, and what tells a private access (Linux `KVM_X86_*_VM`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VmType {
    /// An ordinary VM.
    Default,
    /// Private memory without hardware: the attribute alone decides.
    SwProtected,
    /// AMD SEV.
    Sev,
    /// AMD SEV-ES.
    SevEs,
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel TDX.
    Tdx,
}

impl VmType {
    /// Every type that this crate knows, in the order of KVM's numbers.
    pub const ALL: [Self; 6] = [Self::Default, Self::SwProtected, Self::Sev, Self::SevEs, Self::SevSnp, Self::Tdx];

    /// KVM's number for it.
    pub fn number(self) -> u64 {
        match self {
            Self::Default => 0,
            Self::SwProtected => 1,
            Self::Sev => 2,
            Self::SevEs => 3,
            Self::SevSnp => 4,
            Self::Tdx => 5,
        }
    }

    /// Whether hypercall results reach the guest as they are, and not through a hardware protocol.
    pub fn is_plain(self) -> bool {
        !matches!(self, Self::SevSnp | Self::Tdx)
    }
}

impl fmt::Display for VmType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::SwProtected => "sw-protected",
            Self::Sev => "sev",
            Self::SevEs => "sev-es",
            Self::SevSnp => "sev-snp",
            Self::Tdx => "tdx",
        })
    }
}

/// A named piece of what user-unmappable memory needs of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    /// VMs of this type can be created.
    VmType(VmType),
    /// Regions with two backings.
    UserMemory2,
    /// Memory that no process can map.
    GuestMemfd,
    /// A private attribute for each page.
    MemoryAttributes,
    /// Exits that name the page of a fault.
    MemoryFaultInfo,
    /// Exits for conversion requests.
    ExitHypercall,
    /// Populating memory ahead of the guest's first touch.
    PreFault,
    /// Exits for filtered MSRs.
    UserSpaceMsr,
    /// A filter for MSRs.
    MsrFilter,
    /// A processor of AMD's, with the hypercall instruction that SEV guests use.
    AmdProcessor,
}

impl Capability {
    /// Its name, as the kernel documents it where it is the kernel's.
    pub fn name(self) -> String {
        match self {
            Self::VmType(vm_type) => format!("KVM_CAP_VM_TYPES:{vm_type}"),
            Self::UserMemory2 => "KVM_CAP_USER_MEMORY2".into(),
            Self::GuestMemfd => "KVM_CAP_GUEST_MEMFD".into(),
            Self::MemoryAttributes => "KVM_CAP_MEMORY_ATTRIBUTES:private".into(),
            Self::MemoryFaultInfo => "KVM_CAP_MEMORY_FAULT_INFO".into(),
            Self::ExitHypercall => "KVM_CAP_EXIT_HYPERCALL:map-gpa-range".into(),
            Self::PreFault => "KVM_CAP_PRE_FAULT_MEMORY".into(),
            Self::UserSpaceMsr => "KVM_CAP_X86_USER_SPACE_MSR".into(),
            Self::MsrFilter => "KVM_CAP_X86_MSR_FILTER".into(),
            Self::AmdProcessor => "AMD processor".into(),
        }
    }

    /// How to get it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::VmType(VmType::Default) => "use a host with KVM",
            Self::VmType(VmType::SwProtected) => {
                "boot a Linux 6.8 or later built with CONFIG_KVM_SW_PROTECTED_VM=y, with nested paging on \
                 (kvm_amd.npt=1, kvm.tdp_mmu=1); `cargo lab` does so in a nested host"
            }
            Self::VmType(VmType::Sev | VmType::SevEs) => {
                "use an AMD EPYC with SEV turned on in the firmware and kvm_amd.sev=1 kvm_amd.sev_es=1"
            }
            Self::VmType(VmType::SevSnp) => {
                "use an AMD EPYC 7003 or later with SEV-SNP turned on in the firmware, Linux 6.11 or later and \
                 kvm_amd.sev_snp=1"
            }
            Self::VmType(VmType::Tdx) => {
                "use an Intel Xeon of the fifth generation or later with TDX turned on in the firmware, Linux 6.16 or \
                 later and kvm_intel.tdx=1"
            }
            Self::UserMemory2 | Self::GuestMemfd | Self::MemoryAttributes | Self::MemoryFaultInfo => {
                "boot a Linux 6.8 or later whose KVM is built with private memory (CONFIG_KVM_SW_PROTECTED_VM, or SEV-SNP \
                 or TDX support)"
            }
            Self::ExitHypercall => "boot a Linux 5.14 or later",
            Self::PreFault => "boot a Linux 6.12 or later",
            Self::UserSpaceMsr | Self::MsrFilter => "boot a Linux 5.10 or later",
            Self::AmdProcessor => {
                "use a host with an AMD processor: guests of this isolation issue VMMCALL, which others refuse; `cargo lab` \
                 emulates one"
            }
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// What the host can do with guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryCaps {
    /// The types of VM that can be created.
    pub vm_types: Vec<VmType>,
    /// Regions with two backings.
    pub user_memory2: bool,
    /// Memory that no process can map.
    pub guest_memfd: bool,
    /// Flags that its creation takes (`GUEST_MEMFD_FLAG_*`).
    pub guest_memfd_flags: u64,
    /// A private attribute for each page.
    pub memory_attributes: bool,
    /// Exits that name the page of a fault.
    pub memory_fault_info: bool,
    /// Exits for conversion requests.
    pub exit_hypercall: bool,
    /// Populating memory ahead of the guest's first touch.
    pub pre_fault: bool,
    /// Exits for filtered MSRs.
    pub user_space_msr: bool,
    /// A filter for MSRs.
    pub msr_filter: bool,
    /// Whether the processor is AMD's.
    pub amd_processor: bool,
    /// How many regions a VM may have.
    pub max_regions: u32,
}

impl MemoryCaps {
    /// Whether the host has it.
    pub fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::VmType(vm_type) => self.vm_types.contains(&vm_type),
            Capability::UserMemory2 => self.user_memory2,
            Capability::GuestMemfd => self.guest_memfd,
            Capability::MemoryAttributes => self.memory_attributes,
            Capability::MemoryFaultInfo => self.memory_fault_info,
            Capability::ExitHypercall => self.exit_hypercall,
            Capability::PreFault => self.pre_fault,
            Capability::UserSpaceMsr => self.user_space_msr,
            Capability::MsrFilter => self.msr_filter,
            Capability::AmdProcessor => self.amd_processor,
        }
    }
}
