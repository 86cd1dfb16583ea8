//! What a hypervisor's operations fail with.

use std::io;

use crate::{ByteSize, Capability, GpaRange, PageState, RangeError};

/// The version of KVM's interface that every Linux since 2.6.22 speaks, and that this crate is written for.
pub(crate) const API_VERSION: i32 = 12;

/// Result of a hypervisor operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation that failed, what it was done to, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` could not be opened.
    #[error("cannot open {path}: {remedy}")]
    Open {
        /// The device file.
        path: String,
        /// What the operator can do.
        remedy: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The device at `/dev/kvm` is not the KVM that this crate is written for.
    #[error("{path} speaks version {found} of KVM's interface, expected {API_VERSION}: use a Linux 2.6.22 or later")]
    ApiVersion {
        /// The device file.
        path: String,
        /// The version it speaks.
        found: i32,
    },
    /// The host lacks something that the operation needs.
    #[error("this host lacks {capability}: {}", capability.remedy())]
    Missing {
        /// What is missing.
        capability: Capability,
    },
    /// A system call failed.
    #[error("cannot {operation} {subject}")]
    Failed {
        /// What was to be done, as a verb: "map", "create".
        operation: &'static str,
        /// What it was to be done to, with its values.
        subject: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An attribute could not be set.
    #[error("cannot make {range} {state}")]
    Attribute {
        /// The range.
        range: GpaRange,
        /// The state it was to have.
        state: PageState,
        /// What the kernel says.
        #[source]
        source: AttributeError,
    },
    /// Memory could not be populated.
    #[error("cannot populate {range}")]
    PreFault {
        /// The range.
        range: GpaRange,
        /// What the kernel says.
        #[source]
        source: PreFaultError,
    },
    /// Two numbers that are no range of pages.
    #[error("bad range of guest memory")]
    Range(#[from] RangeError),
    /// A region has more pages than a memory slot takes.
    #[error(
        "region {range} has more than the {limit} pages of 4 KiB that a memory slot can have: give the guest less memory"
    )]
    RegionTooLarge {
        /// Where the region lies in the guest.
        range: GpaRange,
        /// The most pages that there can be.
        limit: u64,
    },
    /// A region names bytes that its backing does not have.
    #[error("region {range} needs bytes {offset:#x}-{end:#x} of a backing of {}", ByteSize(*size))]
    OutsideBacking {
        /// Where the region lies in the guest.
        range: GpaRange,
        /// First byte in the backing.
        offset: u64,
        /// First byte behind.
        end: u128,
        /// Size of the backing in bytes.
        size: u64,
    },
}

impl Error {
    pub(crate) fn failed(
        operation: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(vmm_sys_util::errno::Error) -> Self {
        let subject = subject.into();
        move |errno| Self::Failed { operation, subject, source: errno.into() }
    }

    /// The system's error number, where one is at the bottom of this error.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { source, .. } | Self::Failed { source, .. } => source.raw_os_error(),
            Self::Attribute { source, .. } => source.errno(),
            Self::PreFault { source, .. } => source.errno(),
            _ => None,
        }
    }
}

/// Why an attribute was not set. The range is as it was, but for [`AttributeError::Again`].
///
/// Linux `virt/kvm/kvm_main.c`, `kvm_vm_set_mem_attributes`; [`AttributeError::Again`] is what the in-place conversion
/// ioctl of guest_memfd will add.
#[derive(Debug, thiserror::Error)]
pub enum AttributeError {
    /// Everything below this many bytes is done, and the page there is pinned: try the rest again.
    #[error("a page is pinned at offset {done:#x}")]
    Again {
        /// Bytes from the start of the range that have the new state.
        done: u64,
    },
    /// The range or the attribute is not one that this VM takes.
    #[error("this VM does not take that attribute there (EINVAL)")]
    Invalid,
    /// The kernel has no memory for the record.
    #[error("the host's kernel is out of memory (ENOMEM)")]
    NoMemory,
    /// The VM is dead.
    #[error("the VM is dead (EIO)")]
    Dead,
    /// Something else.
    #[error("unexpected error of KVM_SET_MEMORY_ATTRIBUTES")]
    Other(#[source] io::Error),
}

impl AttributeError {
    pub(crate) fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EINVAL => Self::Invalid,
            libc::ENOMEM => Self::NoMemory,
            libc::EIO => Self::Dead,
            _ => Self::Other(io::Error::from_raw_os_error(errno)),
        }
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::Again { .. } => Some(libc::EAGAIN),
            Self::Invalid => Some(libc::EINVAL),
            Self::NoMemory => Some(libc::ENOMEM),
            Self::Dead => Some(libc::EIO),
            Self::Other(source) => source.raw_os_error(),
        }
    }
}

/// Why not even the first page of a range was populated.
///
/// Linux `virt/kvm/kvm_main.c`, `kvm_vcpu_pre_fault_memory`, and `arch/x86/kvm/mmu/mmu.c`.
#[derive(Debug, thiserror::Error)]
pub enum PreFaultError {
    /// A signal came: try again.
    #[error("interrupted by a signal (EINTR)")]
    Interrupted,
    /// The region of the page is being changed: try again.
    #[error("the page's region is being changed (EAGAIN)")]
    Again,
    /// No region holds the page.
    #[error("no region holds the first page (ENOENT)")]
    NoRegion,
    /// The page's backing does not give memory for it: no guest_memfd, no mapping, or none left.
    #[error("nothing is behind the first page (EFAULT)")]
    NoBacking,
    /// This VM can't have memory populated, or not yet: shadow paging, or a confidential guest that is not finalised.
    #[error("this VM can't have memory populated, or not yet (EOPNOTSUPP)")]
    Unsupported,
    /// The range is not one that this VM takes.
    #[error("this VM does not take that range (EINVAL)")]
    Invalid,
    /// The kernel has no memory.
    #[error("the host's kernel is out of memory (ENOMEM)")]
    NoMemory,
    /// The VM is dead.
    #[error("the VM is dead (EIO)")]
    Dead,
    /// Something else.
    #[error("unexpected error of KVM_PRE_FAULT_MEMORY")]
    Other(#[source] io::Error),
}

impl PreFaultError {
    pub(crate) fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EINTR => Self::Interrupted,
            libc::EAGAIN => Self::Again,
            libc::ENOENT => Self::NoRegion,
            libc::EFAULT => Self::NoBacking,
            libc::EOPNOTSUPP => Self::Unsupported,
            libc::EINVAL => Self::Invalid,
            libc::ENOMEM => Self::NoMemory,
            libc::EIO => Self::Dead,
            _ => Self::Other(io::Error::from_raw_os_error(errno)),
        }
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::Interrupted => Some(libc::EINTR),
            Self::Again => Some(libc::EAGAIN),
            Self::NoRegion => Some(libc::ENOENT),
            Self::NoBacking => Some(libc::EFAULT),
            Self::Unsupported => Some(libc::EOPNOTSUPP),
            Self::Invalid => Some(libc::EINVAL),
            Self::NoMemory => Some(libc::ENOMEM),
            Self::Dead => Some(libc::EIO),
            Self::Other(source) => source.raw_os_error(),
        }
    }
}
