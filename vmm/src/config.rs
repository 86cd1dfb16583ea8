//! What a machine is made of, as the operator says it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use arch::x86_64::Isolation;
use arch::x86_64::map::PCI_SLOTS;
use hypervisor::MemoryCaps;

use crate::devices::virtio::balloon::pages_to_take;
use crate::devices::virtio::pci::AccessPlatform;
use crate::memory::conversion::Policy;
use crate::{Error, Result};

/// How many devices there is room for on the PCI bus: the first slot is the host bridge's.
pub const DEVICE_SLOTS: u8 = PCI_SLOTS - 1;

/// What a configuration comes to on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// What makes the guest's memory unmappable.
    pub isolation: Isolation,
    /// What drivers of devices are told of where these get at memory.
    pub access_platform: AccessPlatform,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The kernel: a vmlinuz or a vmlinux.
    pub kernel: PathBuf,
    /// The initramfs, if any.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Processors.
    pub cpus: CpusConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// What makes it unmappable; `None` for the strongest that the host offers if memory is to be unmappable, and for
    /// nothing if not.
    pub isolation: Option<Isolation>,
    /// Whether drivers are told to use addresses that the platform lets devices at; `None` for only where they must.
    pub access_platform: Option<bool>,
    /// What conversions of guest memory may do.
    pub conversions: Policy,
    /// The serial console.
    pub serial: SerialConfig,
    /// The virtio console.
    pub console: ConsoleConfig,
    /// Where the guest's random numbers come from; `None` for no such device.
    pub rng: Option<RngConfig>,
    /// Disks.
    pub disks: Vec<DiskConfig>,
    /// Network devices.
    pub nets: Vec<NetConfig>,
    /// The socket device.
    pub vsock: Option<VsockConfig>,
    /// The balloon.
    pub balloon: Option<BalloonConfig>,
}

/// Processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpusConfig {
    /// How many there are from the start, at least one.
    pub boot: u8,
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// Whether it is user-unmappable; `None` if the isolation says so: it is, if an isolation other than none is named.
    pub unmappable: Option<bool>,
    /// Bytes at the end of low RAM that the guest is told are not its own: what the operator may convert. Zero for none.
    pub window: u64,
}

/// The virtio console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// There is none.
    Off,
    /// Standard input and output.
    Tty,
    /// A file, output only.
    File(PathBuf),
    /// Nowhere.
    Null,
}

/// Where random numbers come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RngConfig {
    /// The file that is read.
    pub source: PathBuf,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its name among the machine's devices; one is made up where there is none.
    pub id: Option<String>,
    /// The raw image, a file or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub readonly: bool,
    /// How many queues it has, at least one.
    pub queues: u16,
    /// Entries of each queue, a power of two.
    pub queue_size: u16,
    /// The serial number that the guest sees, at most 20 bytes.
    pub serial: Option<String>,
}

/// A network device, on a tap of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Its name among the machine's devices; one is made up where there is none.
    pub id: Option<String>,
    /// The tap interface; the host names a new one where there is none.
    pub tap: Option<String>,
    /// The address that the host's side of the tap gets, with its mask.
    pub host_address: Option<(Ipv4Addr, Ipv4Addr)>,
    /// The guest's hardware address; one is made up where there is none.
    pub mac: Option<[u8; 6]>,
    /// The largest packet in bytes, where it is to be said.
    pub mtu: Option<u16>,
    /// Pairs of queues, at least one.
    pub queue_pairs: u16,
    /// Entries of each queue, a power of two.
    pub queue_size: u16,
    /// Whether checksums may be left to the other side.
    pub checksum_offload: bool,
    /// Whether TCP segmentation may be left to the other side.
    pub tcp_offload: bool,
    /// Whether UDP segmentation may be left to the other side.
    pub udp_offload: bool,
}

/// A socket device, with a unix socket on the host's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// Its name among the machine's devices; one is made up where there is none.
    pub id: Option<String>,
    /// The guest's context identifier, at least 3.
    pub cid: u32,
    /// The socket that hosts connect to; connections of the guest's to port P go to `SOCKET_P`.
    pub socket: PathBuf,
}

/// A balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Bytes that the guest is to give back from the start.
    pub size: u64,
    /// Whether the guest may take memory back when it runs out.
    pub deflate_on_oom: bool,
    /// Whether the guest reports pages that it does not use.
    pub free_page_reporting: bool,
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

impl Default for CpusConfig {
    /// One.
    fn default() -> Self {
        Self { boot: 1 }
    }
}

impl Default for MemoryConfig {
    /// 512 MiB, which are unmappable if the isolation says so, without a window.
    fn default() -> Self {
        Self { size: 512 << 20, unmappable: None, window: 0 }
    }
}

impl Default for RngConfig {
    /// The host's own.
    fn default() -> Self {
        Self { source: "/dev/urandom".into() }
    }
}

impl VmConfig {
    /// A machine that boots this kernel: one processor, 512 MiB of ordinary memory, random numbers, and nothing else; its
    /// serial port goes nowhere. What is to be different is written over it:
    ///
    /// ```
    /// use vmm::config::{MemoryConfig, SerialConfig, VmConfig};
    ///
    /// let config = VmConfig {
    ///     command_line: "console=ttyS0".into(),
    ///     memory: MemoryConfig { unmappable: Some(true), ..MemoryConfig::default() },
    ///     serial: SerialConfig::File("serial.log".into()),
    ///     ..VmConfig::new("vmlinuz")
    /// };
    /// ```
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initramfs: None,
            command_line: String::new(),
            cpus: CpusConfig::default(),
            memory: MemoryConfig::default(),
            isolation: None,
            access_platform: None,
            conversions: Policy::default(),
            serial: SerialConfig::Null,
            console: ConsoleConfig::Off,
            rng: Some(RngConfig::default()),
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            balloon: None,
        }
    }

    /// How many devices it puts on the PCI bus, each of which takes one of its [`DEVICE_SLOTS`].
    pub fn devices_on_bus(&self) -> usize {
        let consoles = usize::from(self.console != ConsoleConfig::Off);
        let one_at_most = [self.vsock.is_some(), self.rng.is_some(), self.balloon.is_some()];
        self.disks.len() + self.nets.len() + consoles + one_at_most.into_iter().filter(|there| *there).count()
    }

    /// What the configuration comes to on a host with these capabilities. Needs no file and makes nothing.
    ///
    /// # Errors
    /// Options that contradict each other, and a host that can't do it.
    pub fn resolve(&self, caps: &MemoryCaps) -> Result<Resolved> {
        if self.cpus.boot == 0 {
            return Err(Error::NoProcessor);
        }
        if (&self.serial, &self.console) == (&SerialConfig::Tty, &ConsoleConfig::Tty) {
            return Err(Error::Contradiction(
                "the serial port and the virtio console can't both have standard input and output: choose file or null for \
                 one",
            ));
        }
        let isolation = self.resolve_isolation(caps)?;
        let access_platform = self.resolve_access_platform(isolation)?;
        if isolation.is_unmappable() && self.balloon.is_some() {
            return Err(Error::Contradiction(
                "a balloon and unmappable memory contradict each other, since guests refuse it there: leave the balloon out, \
                 or choose isolation=none",
            ));
        }
        if let Some(balloon) = &self.balloon {
            pages_to_take(balloon.size, self.memory.size)?;
        }
        Ok(Resolved { isolation, access_platform })
    }

    /// The isolation to use. Never weaker than what was asked for.
    fn resolve_isolation(&self, caps: &MemoryCaps) -> Result<Isolation> {
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

    /// What drivers of devices are told of where these get at memory, with this isolation.
    fn resolve_access_platform(&self, isolation: Isolation) -> Result<AccessPlatform> {
        match (isolation.is_unmappable(), self.access_platform) {
            (true, Some(false)) => Err(Error::Contradiction(
                "access_platform=off and unmappable memory contradict each other, since devices get at a part of it only: \
                 leave access_platform out, or choose isolation=none",
            )),
            (true, _) => Ok(AccessPlatform::Required),
            (false, Some(true)) => Ok(AccessPlatform::Offered),
            (false, _) => Ok(AccessPlatform::Off),
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
            isolation,
            memory: MemoryConfig { unmappable, ..MemoryConfig::default() },
            ..VmConfig::new("vmlinuz")
        }
    }

    #[test]
    fn unmappable_memory_is_never_silently_left_out() {
        let able = caps(&[VmType::Default, VmType::SwProtected]);
        let unable = caps(&[VmType::Default]);
        for isolation in [None, Some(Isolation::Software)] {
            let config = config(isolation, Some(true));
            assert_eq!(config.resolve(&able).unwrap().isolation, Isolation::Software);
            assert!(config.resolve(&unable).is_err());
        }
        let error = config(Some(Isolation::Software), None).resolve(&unable).unwrap_err().to_string();
        assert!(
            error.contains("KVM_CAP_VM_TYPES:sw-protected") && error.contains("CONFIG_KVM_SW_PROTECTED_VM"),
            "{error}"
        );
    }

    #[test]
    fn contradictions_are_errors() {
        let able = caps(&[VmType::Default, VmType::SwProtected]);
        assert!(config(Some(Isolation::None), Some(true)).resolve(&able).is_err());
        assert!(config(Some(Isolation::Software), Some(false)).resolve(&able).is_err());
        let with_balloon = |isolation| VmConfig {
            balloon: Some(BalloonConfig { size: 0, deflate_on_oom: false, free_page_reporting: false }),
            ..config(Some(isolation), None)
        };
        with_balloon(Isolation::None).resolve(&able).unwrap();
        let mut too_large = with_balloon(Isolation::None);
        too_large.balloon.as_mut().unwrap().size = too_large.memory.size;
        assert!(too_large.resolve(&able).unwrap_err().to_string().contains("ask for less"));
        assert!(with_balloon(Isolation::Software).resolve(&able).unwrap_err().to_string().contains("a balloon"));
        let two_on_the_terminal =
            VmConfig { serial: SerialConfig::Tty, console: ConsoleConfig::Tty, ..config(None, None) };
        assert!(two_on_the_terminal.resolve(&able).unwrap_err().to_string().contains("choose file or null"));
    }

    #[test]
    fn drivers_are_told_where_devices_get_where_they_must_and_where_it_is_asked_for() {
        let able = caps(&[VmType::Default, VmType::SwProtected]);
        let of = |isolation, access_platform| {
            let config = VmConfig { access_platform, ..config(Some(isolation), None) };
            Ok::<_, Error>(config.resolve(&able)?.access_platform)
        };
        for asked in [None, Some(true)] {
            assert_eq!(of(Isolation::Software, asked).unwrap(), AccessPlatform::Required);
        }
        assert!(of(Isolation::Software, Some(false)).unwrap_err().to_string().contains("access_platform"));
        for asked in [None, Some(false)] {
            assert_eq!(of(Isolation::None, asked).unwrap(), AccessPlatform::Off);
        }
        assert_eq!(of(Isolation::None, Some(true)).unwrap(), AccessPlatform::Offered);
    }

    #[test]
    fn ordinary_memory_is_the_default() {
        let able = caps(&[VmType::Default, VmType::SwProtected]);
        for unmappable in [None, Some(false)] {
            assert_eq!(config(None, unmappable).resolve(&able).unwrap().isolation, Isolation::None);
        }
    }
}
