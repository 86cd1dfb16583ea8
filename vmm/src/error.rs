//! What stops a machine from being built or from running.

use std::io;
use std::path::PathBuf;

use arch::x86_64::Isolation;
use arch::x86_64::image::ImageError;
use arch::x86_64::launch::LaunchError;
use arch::x86_64::memory_layout::LayoutError;
use hypervisor::{ByteSize, Capability};

use crate::memory::ConversionError;
use crate::memory::conversion::SetupError;

/// Result of building or running a machine.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and with what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the machine could not be used.
    #[error("cannot {operation} {role} {}", path.display())]
    File {
        /// What was to be done: "read", "create".
        operation: &'static str,
        /// What the file is for: "kernel", "initramfs".
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file of the machine has more bytes than can be of use.
    #[error("{role} {} has more than {}, and there is no room for more: pass a smaller file", path.display(), ByteSize(*limit))]
    FileTooLarge {
        /// What the file is for: "kernel", "initramfs".
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// The most bytes that it may have.
        limit: u64,
    },
    /// The kernel is none.
    #[error("cannot load kernel {}", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ImageError,
    },
    /// The host can't do what was asked for.
    #[error("isolation={isolation} is not possible on this host: {}", list(missing))]
    IsolationMissing {
        /// The isolation.
        isolation: Isolation,
        /// What the host lacks for it.
        missing: Vec<Capability>,
    },
    /// Two options contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// No layout for the memory.
    #[error("cannot lay out guest memory")]
    Layout(#[from] LayoutError),
    /// The guest can't be launched.
    #[error("cannot launch the guest")]
    Launch(#[from] LaunchError),
    /// The hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// Guest memory could not be set up.
    #[error("cannot set up guest memory")]
    Memory(#[from] SetupError),
    /// Guest memory could not be filled.
    #[error("cannot write {size:#x} bytes at {gpa:#x} of guest memory")]
    GuestMemory {
        /// Guest physical address.
        gpa: u64,
        /// Size in bytes.
        size: usize,
    },
    /// A conversion failed so that nothing can go on.
    #[error("cannot convert guest memory")]
    Conversion(#[from] ConversionError),
    /// The system refused something that a machine needs.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A machine of no processors.
    #[error("a machine needs at least one processor: ask for one, or more")]
    NoProcessor,
    /// The machine has ended, or is about to.
    #[error("the machine has ended")]
    Ended,
    /// A device has more queues than a driver could be told of.
    #[error("device {id} has {queues} queues, and at most {most} are possible: give it fewer")]
    TooManyQueues {
        /// Its name.
        id: String,
        /// How many it has.
        queues: usize,
        /// The most that it may have.
        most: usize,
    },
    /// A device's name is taken, or none.
    #[error("{id:?} can't be the name of a new device: {reason}")]
    DeviceName {
        /// The name.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A device of the embedder's can't be there.
    #[error("no device can have {place}: {reason}")]
    DevicePlace {
        /// The ports or addresses.
        place: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// There is no such device.
    #[error("the machine has no device {id:?}: its devices are {}", if devices.is_empty() { "none" } else { devices })]
    NoSuchDevice {
        /// The name.
        id: String,
        /// Those that there are.
        devices: String,
    },
    /// All slots of the bus are taken.
    #[error("all {slots} slots of the PCI bus are taken: remove a device first")]
    NoSlot {
        /// How many there are for devices.
        slots: u8,
    },
    /// The machine has no balloon.
    #[error(
        "the machine has no balloon to set: give it one when it is created (not possible where isolation forbids it)"
    )]
    NoBalloon,
    /// As many interrupt vectors are in use as a machine can have.
    #[error("no interrupt line is left: give devices fewer queues, or remove a device")]
    NoInterruptLine,
    /// A device can't be what its configuration says.
    #[error("{device}: {problem}")]
    Device {
        /// The device, by what it is and what it works on: "disk /images/debian.raw".
        device: String,
        /// What is wrong, and what to do about it.
        problem: String,
    },
    /// A vCPU stopped for a reason that nothing can be done about.
    #[error("vCPU {id} stopped at {rip:#x}: {reason}")]
    Vcpu {
        /// Which one.
        id: u8,
        /// Its instruction pointer.
        rip: u64,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// Wraps an error of the system's.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn list(missing: &[Capability]) -> String {
    let lines: Vec<String> =
        missing.iter().map(|capability| format!("it lacks {capability} ({})", capability.remedy())).collect();
    lines.join("; ")
}
