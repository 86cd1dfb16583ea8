//! Option values as Cloud Hypervisor writes them: `key=value` pairs between commas, and sizes with a suffix.
//!
//! They become the API's own types, so that the command line and the API say and refuse the same.

mod pairs;

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use umbra_api::convert::ConfigError;
use umbra_api::types::{
    BalloonConfig, ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, MemoryConfig, NetConfig, PlatformConfig,
    PolicyConfig, RngConfig, SerialConfig, VsockConfig,
};
use vmm::config as to;

use pairs::Kind::{Number, Processors, Size, Switch, Text};
use pairs::{Key, parse, size};

/// Reads a value and checks that it can be honoured. What can't be is told by its key here, not by the API's name.
fn read<T, F: DeserializeOwned>(
    text: &str,
    keys: &[Key],
    defaults: Value,
    convert: impl Fn(&F) -> Result<T, ConfigError>,
) -> Result<F, String> {
    let config = parse(text, keys, defaults)?;
    convert(&config).map_err(|error| {
        let key = keys.iter().find(|(_, field, _)| *field == error.field).map(|(key, ..)| *key);
        key.map_or_else(|| error.to_string(), |key| ConfigError::new(key, error.reason.clone()).to_string())
    })?;
    Ok(config)
}

/// `--memory size=512M,unmappable=on,window=16M`
pub fn memory(text: &str) -> Result<MemoryConfig, String> {
    let keys = [
        ("size", "size", Size),
        ("unmappable", "unmappable", Switch),
        ("window", "window", Size),
        ("shared", "shared", Switch),
        ("thp", "thp", Switch),
        ("hotplug_size", "hotplug_size", Size),
        ("hotplug_method", "hotplug_method", Text),
        ("mergeable", "mergeable", Switch),
        ("hugepages", "hugepages", Switch),
        ("prefault", "prefault", Switch),
        ("reserve", "reserve", Switch),
    ];
    read(text, &keys, json!({ "size": 512u64 << 20 }), |config| to::MemoryConfig::try_from(config))
}

/// `--cpus boot=2,max=2`
pub fn cpus(text: &str) -> Result<CpusConfig, String> {
    let keys = [
        ("boot", "boot_vcpus", Processors),
        ("max", "max_vcpus", Processors),
        ("kvm_hyperv", "kvm_hyperv", Switch),
        ("max_phys_bits", "max_phys_bits", Number),
        ("nested", "nested", Switch),
    ];
    read(text, &keys, json!({ "boot_vcpus": 1 }), |config| to::CpusConfig::try_from(config))
}

/// `--disk path=PATH,readonly=on,...`
pub fn disk(text: &str) -> Result<DiskConfig, String> {
    let keys = [
        ("path", "path", Text),
        ("readonly", "readonly", Switch),
        ("num_queues", "num_queues", Number),
        ("queue_size", "queue_size", Number),
        ("id", "id", Text),
        ("serial", "serial", Text),
        ("image_type", "image_type", Text),
        ("direct", "direct", Switch),
        ("iommu", "iommu", Switch),
        ("vhost_user", "vhost_user", Switch),
        ("socket", "vhost_socket", Text),
        ("pci_segment", "pci_segment", Number),
        ("backing_files", "backing_files", Switch),
        ("sparse", "sparse", Switch),
    ];
    read(text, &keys, json!({}), |config| to::DiskConfig::try_from(config))
}

/// `--net tap=NAME,mac=MAC,ip=IP,mask=MASK,mtu=N,...`
pub fn net(text: &str) -> Result<NetConfig, String> {
    let keys = [
        ("tap", "tap", Text),
        ("ip", "ip", Text),
        ("mask", "mask", Text),
        ("mac", "mac", Text),
        ("mtu", "mtu", Number),
        ("num_queues", "num_queues", Number),
        ("queue_size", "queue_size", Number),
        ("id", "id", Text),
        ("offload_tso", "offload_tso", Switch),
        ("offload_ufo", "offload_ufo", Switch),
        ("offload_csum", "offload_csum", Switch),
        ("host_mac", "host_mac", Text),
        ("iommu", "iommu", Switch),
        ("vhost_user", "vhost_user", Switch),
        ("socket", "vhost_socket", Text),
        ("pci_segment", "pci_segment", Number),
    ];
    read(text, &keys, json!({}), |config| to::NetConfig::try_from(config))
}

/// `--vsock cid=3,socket=PATH`
pub fn vsock(text: &str) -> Result<VsockConfig, String> {
    let keys = [
        ("cid", "cid", Number),
        ("socket", "socket", Text),
        ("id", "id", Text),
        ("iommu", "iommu", Switch),
        ("pci_segment", "pci_segment", Number),
    ];
    read(text, &keys, json!({}), |config| to::VsockConfig::try_from(config))
}

/// `--rng src=/dev/urandom`
pub fn rng(text: &str) -> Result<RngConfig, String> {
    let keys = [("src", "src", Text), ("iommu", "iommu", Switch)];
    read(text, &keys, json!({}), |config| to::RngConfig::try_from(config))
}

/// `--balloon size=64M,deflate_on_oom=on,free_page_reporting=on`
pub fn balloon(text: &str) -> Result<BalloonConfig, String> {
    let keys = [
        ("size", "size", Size),
        ("deflate_on_oom", "deflate_on_oom", Switch),
        ("free_page_reporting", "free_page_reporting", Switch),
    ];
    read(text, &keys, json!({}), |config| to::BalloonConfig::try_from(config))
}

/// `--platform isolation=auto|none|software,access_platform=on`
pub fn platform(text: &str) -> Result<PlatformConfig, String> {
    let keys = [
        ("isolation", "isolation", Text),
        ("access_platform", "access_platform", Switch),
        ("num_pci_segments", "num_pci_segments", Number),
        ("serial_number", "serial_number", Text),
        ("uuid", "uuid", Text),
        ("tdx", "tdx", Switch),
        ("sev_snp", "sev_snp", Switch),
    ];
    parse(text, &keys, json!({}))
}

/// `--conversions implicit=refuse,explicit=100/s`
pub fn conversions(text: &str) -> Result<PolicyConfig, String> {
    let keys = [("explicit", "explicit", Text), ("implicit", "implicit", Text), ("host", "host", Text)];
    read(text, &keys, json!({}), |config: &PolicyConfig| config.over(Default::default()))
}

/// Where a console goes.
fn place(text: &str) -> Result<(ConsoleMode, Option<PathBuf>), String> {
    match text.split_once('=') {
        None if text == "tty" => Ok((ConsoleMode::Tty, None)),
        None if text == "null" => Ok((ConsoleMode::Null, None)),
        None if text == "off" => Ok((ConsoleMode::Off, None)),
        Some(("file", path)) if !path.is_empty() => Ok((ConsoleMode::File, Some(path.into()))),
        _ => Err(format!("{text:?} is no place for a console: choose off, tty, null or file=PATH")),
    }
}

/// `--serial off|tty|file=PATH|null`
pub fn serial(text: &str) -> Result<SerialConfig, String> {
    place(text).map(|(mode, file)| SerialConfig { mode, file, socket: None, iommu: None })
}

/// `--console off|tty|file=PATH|null`
pub fn console(text: &str) -> Result<ConsoleConfig, String> {
    let none = (None, None, None, None, None);
    let (socket, id, iommu, pci_segment, pci_device_id) = none;
    place(text).map(|(mode, file)| ConsoleConfig { mode, file, socket, id, iommu, pci_segment, pci_device_id })
}

/// `--event-monitor path=PATH`
pub fn event_monitor(text: &str) -> Result<PathBuf, String> {
    only_path(text)
}

/// `--api-socket PATH` or `--api-socket path=PATH`, as Cloud Hypervisor takes both.
pub fn api_socket(text: &str) -> Result<PathBuf, String> {
    match text.split_once('=') {
        Some(("path", _)) => only_path(text),
        Some(("fd", _)) => Err(format!(
            "{text:?} is no path: umbra makes its socket itself, and takes none that is open already (a file of this name is \
             path={text})"
        )),
        _ => Ok(text.into()),
    }
}

fn only_path(text: &str) -> Result<PathBuf, String> {
    // The only key there is, so that a path may hold commas.
    match text.split_once('=') {
        Some(("path", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err(format!("{text:?} is not of the form path=PATH")),
    }
}

/// A size or an address: bytes, a number with a suffix, or hexadecimal with 0x.
pub fn bytes(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).map_err(|_| format!("{text:?} is no hexadecimal number")),
        None => size(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_api::types::IsolationName;

    #[test]
    fn unknown_missing_and_repeated_keys_are_errors_that_name_them() {
        assert!(memory("size=1G,shred=on").unwrap_err().contains("shred"));
        assert!(memory("size=1G,unmapable=on").unwrap_err().contains("did you mean \"unmappable\"?"));
        assert!(!memory("size=1G,colour=red").unwrap_err().contains("did you mean"));
        assert!(memory("size=1G,size=2G").unwrap_err().contains("twice"));
        assert!(memory("1G").unwrap_err().contains("key=value"));
        assert!(memory("unmappable=maybe").unwrap_err().contains("maybe"));
        let config = memory("size=1G,unmappable=on,window=16M").unwrap();
        assert_eq!((config.size, config.unmappable, config.window), (1 << 30, Some(true), Some(16 << 20)));
        assert!(vsock("cid=3").unwrap_err().contains("socket"));
        assert!(disk("readonly=on").unwrap_err().contains("path"));
        assert!(cpus("boot=300").unwrap_err().contains("300"));
        assert!(cpus("boot=0").unwrap_err().contains("1 to 255"));
        assert!(cpus("boot=2,max=1").unwrap_err().starts_with("max: "));
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_here_already() {
        assert!(memory("mergeable=on").unwrap_err().contains("mergeable"));
        assert!(memory("size=1G,hotplug_size=1G").unwrap_err().contains("hotplug_size"));
        assert!(memory("size=1G,hotplug_size=0,hotplug_method=acpi,thp=on,shared=on").is_ok());
        assert!(memory("size=1G,hotplug_method=virtio-mem").unwrap_err().contains("hotplug_method"));
        assert!(cpus("boot=2,max=4").unwrap_err().starts_with("max: ") && cpus("boot=2,max=2").is_ok());
        assert!(disk("path=x,socket=/s").unwrap_err().starts_with("socket: "));
        assert!(disk("path=x,vhost_user=on").unwrap_err().contains("vhost_user"));
        assert!(net("tap=t,mac=ff:ff:ff:ff:ff:ff").unwrap_err().contains("mac"));
        assert!(net("tap=t,ip=::1").unwrap_err().contains("ip"));
        for bad in [
            "implicit",
            "implicit=no",
            "explicit=0/s",
            "explicit=+5/s",
            "explicit=007/s",
            "host=4294967295/s",
            "x=allow",
        ] {
            assert!(conversions(bad).is_err(), "{bad}");
        }
        assert_eq!(conversions("implicit=refuse").unwrap().implicit.as_deref(), Some("refuse"));
    }

    #[test]
    fn platforms_and_consoles_are_known_by_name() {
        assert_eq!(platform("isolation=auto").unwrap().isolation, Some(IsolationName::Auto));
        assert_eq!(platform("isolation=software").unwrap().isolation, Some(IsolationName::Software));
        assert_eq!(platform("access_platform=on").unwrap().access_platform, Some(true));
        assert!(platform("isolation=tdx").unwrap_err().contains("software"));
        assert_eq!(serial("file=/a,b").unwrap().file, Some("/a,b".into()));
        assert!(serial("pty").is_err() && serial("file=").is_err() && console("socket=x").is_err());
        assert_eq!(event_monitor("path=/tmp/a=b,c"), Ok("/tmp/a=b,c".into()));
        assert!(event_monitor("/tmp/x").is_err() && event_monitor("fd=3").is_err() && event_monitor("path=").is_err());
        assert_eq!(api_socket("path=/a"), Ok("/a".into()));
        assert_eq!(api_socket("/a"), Ok("/a".into()));
        assert_eq!(api_socket("path=fd=3"), Ok("fd=3".into()));
        assert!(api_socket("fd=3").unwrap_err().contains("is no path") && api_socket("path=").is_err());
        assert_eq!((bytes("0x1000"), bytes("16M")), (Ok(4096), Ok(16 << 20)));
        assert!(bytes("0xg").is_err());
    }
}
