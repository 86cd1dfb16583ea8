//! Devices.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use vmm::config as to;

use super::{ConfigError, check_id, refuse, refuse_place};
use crate::types::{
    BalloonConfig, ConsoleConfig, ConsoleMode, DiskConfig, NetConfig, RngConfig, SerialConfig, VsockConfig,
};

const NO_RATE_LIMITS: &str = "devices have no rate limits: leave it out";
const NO_VHOST_USER: &str =
    "it maps guest memory into another process, which unmappable memory rules out: leave it out";
/// How many entries a disk's queues may have: a request takes three.
const DISK_QUEUE_SIZES: RangeInclusive<u16> = 4..=1024;
/// How many entries a network device's queues may have.
const NET_QUEUE_SIZES: RangeInclusive<u16> = 16..=1024;
/// The most bytes of a disk's serial number (virtio 1.3, 5.2.6).
const MAX_SERIAL: usize = 20;
const MAX_QUEUES: u16 = 64;

fn check_queue_size(size: u16, sizes: &RangeInclusive<u16>) -> Result<(), ConfigError> {
    let reason = format!("its queues need a power of two of entries, from {} to {}", sizes.start(), sizes.end());
    refuse("queue_size", !size.is_power_of_two() || !sizes.contains(&size), &reason)
}

impl TryFrom<&DiskConfig> for to::DiskConfig {
    type Error = ConfigError;

    fn try_from(from: &DiskConfig) -> Result<Self, ConfigError> {
        refuse_place(from.iommu, from.pci_segment, from.pci_device_id)?;
        check_id(from.id.as_deref())?;
        refuse("vhost_user", from.vhost_user == Some(true), NO_VHOST_USER)?;
        refuse("vhost_socket", from.vhost_socket.is_some(), NO_VHOST_USER)?;
        refuse("direct", from.direct == Some(true), "the host's page cache is used: leave it out")?;
        refuse("rate_limiter_config", from.rate_limiter_config.is_some(), NO_RATE_LIMITS)?;
        refuse("rate_limit_group", from.rate_limit_group.is_some(), NO_RATE_LIMITS)?;
        let affinity = from.queue_affinity.as_ref().is_some_and(|affinity| !affinity.is_nothing());
        refuse("queue_affinity", affinity, "queues are not pinned: leave it out")?;
        let thick = "what the guest discards is given back to the host's file system: leave it out";
        refuse("sparse", from.sparse == Some(false), thick)?;
        // What `ch-remote` does not know it leaves to the VMM, as Unknown.
        let raw = |kind: &str| ["raw", "unknown"].iter().any(|known| kind.eq_ignore_ascii_case(known));
        let raw = from.image_type.as_deref().is_none_or(raw);
        refuse("image_type", !raw, "only raw images are read: convert it, for example with qemu-img")?;
        let serial = from.serial.clone().filter(|serial| !serial.is_empty());
        let long = serial.as_ref().is_some_and(|serial| serial.len() > MAX_SERIAL);
        refuse("serial", long, "it has more than 20 bytes")?;
        let path = from.path.clone().filter(|path| !path.as_os_str().is_empty());
        let path = path.ok_or_else(|| ConfigError::new("path", "it is missing: name a raw image or a block device"))?;
        let (queues, queue_size) = (from.num_queues.unwrap_or(1), from.queue_size.unwrap_or(128));
        refuse("num_queues", queues == 0 || queues > MAX_QUEUES, "a disk has 1 to 64 queues")?;
        check_queue_size(queue_size, &DISK_QUEUE_SIZES)?;
        Ok(Self { id: from.id.clone(), path, readonly: from.readonly == Some(true), queues, queue_size, serial })
    }
}

/// A hardware address of one interface, such as `12:34:56:78:9a:bc`.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // The lowest bit of the first byte marks addresses of many.
    (parts.next().is_none() && bytes[0] & 1 == 0).then_some(bytes)
}

fn is_mask(mask: Ipv4Addr) -> bool {
    mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() >= 32
}

fn ipv4(field: &str, text: Option<&str>) -> Result<Option<Ipv4Addr>, ConfigError> {
    let bad = |_| ConfigError::new(field, "it is no IPv4 address, such as 192.168.249.1");
    text.map(|text| text.parse().map_err(bad)).transpose()
}

impl TryFrom<&NetConfig> for to::NetConfig {
    type Error = ConfigError;

    fn try_from(from: &NetConfig) -> Result<Self, ConfigError> {
        refuse_place(from.iommu, from.pci_segment, from.pci_device_id)?;
        check_id(from.id.as_deref())?;
        refuse("vhost_user", from.vhost_user == Some(true), NO_VHOST_USER)?;
        refuse("vhost_socket", from.vhost_socket.is_some(), NO_VHOST_USER)?;
        refuse("rate_limiter_config", from.rate_limiter_config.is_some(), NO_RATE_LIMITS)?;
        refuse("host_mac", from.host_mac.is_some(), "set it on the tap yourself: ip link set TAP address MAC")?;
        let fds = from.fds.as_ref().is_some_and(|fds| !fds.is_empty());
        refuse("fds", fds, "descriptors are not taken: name the tap instead")?;
        let bad_mac =
            || ConfigError::new("mac", "it is no hardware address of one interface, such as 12:34:56:78:9a:bc");
        let mac = from.mac.as_deref().map(|text| mac(text).ok_or_else(bad_mac)).transpose()?;
        let tap = from.tap.clone().filter(|tap| !tap.is_empty());
        let long = tap.as_ref().is_some_and(|tap| tap.len() > 15 || tap.contains(['/', '\0', ' ']));
        refuse("tap", long, "a name of an interface has at most 15 bytes, and no slash, space or zero among them")?;
        let mask = ipv4("mask", from.mask.as_deref())?;
        refuse("mask", mask.is_some_and(|mask| !is_mask(mask)), "it is no mask, such as 255.255.255.0")?;
        let host_address =
            ipv4("ip", from.ip.as_deref())?.map(|ip| (ip, mask.unwrap_or(Ipv4Addr::new(255, 255, 255, 0))));
        // RFC 791: what every host can take.
        refuse("mtu", from.mtu.is_some_and(|mtu| mtu < 68), "it must be at least 68")?;
        let queues = from.num_queues.unwrap_or(2);
        let fine = queues.is_multiple_of(2) && (2..=MAX_QUEUES).contains(&queues);
        refuse("num_queues", !fine, "queues come in pairs: an even number from 2 to 64")?;
        let queue_size = from.queue_size.unwrap_or(256);
        check_queue_size(queue_size, &NET_QUEUE_SIZES)?;
        Ok(Self {
            id: from.id.clone(),
            tap,
            host_address,
            mac,
            mtu: from.mtu,
            queue_pairs: queues / 2,
            queue_size,
            checksum_offload: from.offload_csum.unwrap_or(true),
            tcp_offload: from.offload_tso.unwrap_or(true),
            udp_offload: from.offload_ufo.unwrap_or(true),
        })
    }
}

impl TryFrom<&VsockConfig> for to::VsockConfig {
    type Error = ConfigError;

    fn try_from(from: &VsockConfig) -> Result<Self, ConfigError> {
        refuse_place(from.iommu, from.pci_segment, from.pci_device_id)?;
        check_id(from.id.as_deref())?;
        // 0 to 2 and the last are the hypervisor's, the host's and nobody's (Linux vm_sockets.h).
        let cid = u32::try_from(from.cid).ok().filter(|cid| (3..u32::MAX).contains(cid));
        let cid = cid.ok_or_else(|| ConfigError::new("cid", "a guest's identifier is from 3 to 4294967294"))?;
        refuse("socket", from.socket.as_os_str().is_empty(), "it is empty: name a path for the socket")?;
        Ok(Self { id: from.id.clone(), cid, socket: from.socket.clone() })
    }
}

impl TryFrom<&RngConfig> for to::RngConfig {
    type Error = ConfigError;

    fn try_from(from: &RngConfig) -> Result<Self, ConfigError> {
        refuse_place(from.iommu, from.pci_segment, from.pci_device_id)?;
        refuse("src", from.src.as_os_str().is_empty(), "it is empty: name a source, such as /dev/urandom")?;
        Ok(Self { source: from.src.clone() })
    }
}

impl TryFrom<&BalloonConfig> for to::BalloonConfig {
    type Error = ConfigError;

    fn try_from(from: &BalloonConfig) -> Result<Self, ConfigError> {
        refuse_place(from.iommu, from.pci_segment, from.pci_device_id)?;
        refuse("statistics", from.statistics == Some(true), "the balloon has no statistics: leave it out")?;
        Ok(Self {
            size: from.size,
            deflate_on_oom: from.deflate_on_oom == Some(true),
            free_page_reporting: from.free_page_reporting == Some(true),
        })
    }
}

const NO_PTY: &str = "choose Off, Tty, File or Null";

fn file(mode: ConsoleMode, file: Option<&std::path::PathBuf>) -> Result<Option<std::path::PathBuf>, ConfigError> {
    let file = file.filter(|path| !path.as_os_str().is_empty());
    match (mode, file) {
        (ConsoleMode::Pty | ConsoleMode::Socket, _) => Err(ConfigError::new("mode", NO_PTY)),
        (ConsoleMode::File, None) => Err(ConfigError::new("file", "mode File needs one: name it")),
        (ConsoleMode::File, file) => Ok(file.cloned()),
        (_, Some(_)) => Err(ConfigError::new("file", "only mode File has one: leave it out")),
        (_, None) => Ok(None),
    }
}

impl TryFrom<&SerialConfig> for to::SerialConfig {
    type Error = ConfigError;

    fn try_from(from: &SerialConfig) -> Result<Self, ConfigError> {
        refuse_place(from.iommu, None, None)?;
        refuse("socket", from.socket.is_some(), NO_PTY)?;
        Ok(match (from.mode, file(from.mode, from.file.as_ref())?) {
            (_, Some(path)) => Self::File(path),
            (ConsoleMode::Tty, _) => Self::Tty,
            _ => Self::Null,
        })
    }
}

impl TryFrom<&ConsoleConfig> for to::ConsoleConfig {
    type Error = ConfigError;

    fn try_from(from: &ConsoleConfig) -> Result<Self, ConfigError> {
        refuse_place(from.iommu, from.pci_segment, from.pci_device_id)?;
        refuse("socket", from.socket.is_some(), NO_PTY)?;
        Ok(match (from.mode, file(from.mode, from.file.as_ref())?) {
            (_, Some(path)) => Self::File(path),
            (ConsoleMode::Tty, _) => Self::Tty,
            (ConsoleMode::Null, _) => Self::Null,
            _ => Self::Off,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_have_the_sizes_that_devices_take() {
        for (size, disk, net) in [(2, false, false), (4, true, false), (8, true, false), (16, true, true)]
            .into_iter()
            .chain([(100, false, false), (1024, true, true), (2048, false, false), (32768, false, false)])
        {
            let config = DiskConfig { path: Some("/d".into()), queue_size: Some(size), ..DiskConfig::default() };
            assert_eq!(to::DiskConfig::try_from(&config).is_ok(), disk, "{size}");
            let config = NetConfig { queue_size: Some(size), ..NetConfig::default() };
            assert_eq!(to::NetConfig::try_from(&config).is_ok(), net, "{size}");
        }
    }

    #[test]
    fn addresses_are_exact_or_errors() {
        assert_eq!(mac("12:34:56:78:9a:BC"), Some([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]));
        for bad in
            ["", "12:34:56:78:9a", "12:34:56:78:9a:bc:de", "13:34:56:78:9a:bc", "+1:34:56:78:9a:bc", "1:2:3:4:5:6"]
        {
            assert_eq!(mac(bad), None, "{bad}");
        }
        for (mask, fine) in
            [("255.255.255.0", true), ("0.0.0.0", true), ("255.255.255.255", true), ("255.0.255.0", false)]
        {
            assert_eq!(is_mask(mask.parse().unwrap()), fine, "{mask}");
        }
    }
}
