//! The machine, its processors, memory and platform.

use arch::x86_64::Isolation;
use serde_json::Value;
use vmm::config as to;
use vmm::memory::conversion::Policy;

use super::{ConfigError, refuse};
use crate::types::{
    CpuTopology, CpusConfig, IsolationName, MemoryConfig, PayloadConfig, PlatformConfig, Unsupported, VmConfig,
};

/// What Cloud Hypervisor's clients send for `max_phys_bits` when nobody asked for a limit.
const DEFAULT_PHYS_BITS: u8 = 46;

/// Why there is no SMBIOS field.
const NO_SMBIOS: &str = "the machine has no SMBIOS tables to say it in: leave it out";

impl TryFrom<&VmConfig> for to::VmConfig {
    type Error = ConfigError;

    fn try_from(from: &VmConfig) -> Result<Self, ConfigError> {
        refuse_sections(from)?;
        let PayloadConfig { kernel, cmdline, initramfs, firmware, igvm, host_data } = &from.payload;
        let no_firmware = "Umbra boots kernels: give payload.kernel instead";
        refuse("payload.firmware", firmware.is_some(), no_firmware)?;
        refuse("payload.igvm", igvm.is_some(), no_firmware)?;
        refuse("payload.host_data", host_data.is_some(), "no isolation here measures it: leave it out")?;
        let kernel = kernel.clone().filter(|path| !path.as_os_str().is_empty());
        let kernel = kernel.ok_or_else(|| ConfigError::new("payload.kernel", "it is missing: name a Linux kernel"))?;
        let (cpus, memory) = (from.cpus.as_ref(), from.memory.as_ref());
        let cpus = cpus.map_or(Ok(to::CpusConfig::default()), to::CpusConfig::try_from);
        let memory = memory.map_or(Ok(to::MemoryConfig::default()), to::MemoryConfig::try_from);
        let isolation = from.platform.as_ref().map_or(Ok(None), isolation);
        let conversions =
            from.conversions.as_ref().map_or(Ok(Policy::default()), |rules| rules.over(Policy::default()));
        let config = Self {
            kernel,
            initramfs: initramfs.clone(),
            command_line: cmdline.clone().unwrap_or_default(),
            cpus: cpus.map_err(|error| error.inside("cpus"))?,
            memory: memory.map_err(|error| error.inside("memory"))?,
            isolation: isolation.map_err(|error| error.inside("platform"))?,
            access_platform: from.platform.as_ref().and_then(|platform| platform.access_platform),
            conversions: conversions.map_err(|error| error.inside("conversions"))?,
            serial: one("serial", from.serial.as_ref())?.unwrap_or(to::SerialConfig::Null),
            console: one("console", from.console.as_ref())?.unwrap_or(to::ConsoleConfig::Off),
            rng: Some(one("rng", from.rng.as_ref())?.unwrap_or_default()),
            disks: all("disks", from.disks.as_deref())?,
            nets: all("net", from.net.as_deref())?,
            vsock: one("vsock", from.vsock.as_ref())?,
            balloon: one("balloon", from.balloon.as_ref())?,
        };
        let both_tty = config.serial == to::SerialConfig::Tty && config.console == to::ConsoleConfig::Tty;
        refuse("console.mode", both_tty, "the serial console has the terminal already: choose one of them")?;
        check_ids(&config)?;
        check_slots(&config)?;
        Ok(config)
    }
}

/// What Umbra has none of.
fn refuse_sections(from: &VmConfig) -> Result<(), ConfigError> {
    let unmappable = "it maps guest memory into another process, which unmappable memory rules out";
    let sections = [
        ("rate_limit_groups", &from.rate_limit_groups, "devices have no rate limits"),
        ("fs", &from.fs, unmappable),
        ("generic_vhost_user", &from.generic_vhost_user, unmappable),
        ("pmem", &from.pmem, "there is no persistent memory device: use a disk"),
        ("devices", &from.devices, "host devices can't be passed through: they would need all of guest memory mapped"),
        ("user_devices", &from.user_devices, unmappable),
        ("vdpa", &from.vdpa, "vDPA devices would need all of guest memory mapped"),
        ("numa", &from.numa, "guests have one NUMA node"),
        ("sgx_epc", &from.sgx_epc, "there is no SGX"),
        ("pci_segments", &from.pci_segments, "there is one PCI segment"),
        ("tpm", &from.tpm, "there is no TPM"),
        ("landlock_rules", &from.landlock_rules, "there is no Landlock yet"),
    ];
    for (field, section, reason) in sections {
        let given = section.as_ref().is_some_and(|section| !section.is_nothing());
        refuse(field, given, &format!("{reason}: leave it out"))?;
    }
    let console = from.debug_console.as_ref().filter(|console| !is_off(console));
    refuse("debug_console", console.is_some(), "there is none: leave it out, or set its mode to Off")?;
    let rtc = from.rtc.as_ref().is_some_and(|rtc| rtc.0.get("iommu") == Some(&Value::Bool(true)));
    refuse("rtc.iommu", rtc, "there is no virtual IOMMU: leave it out")?;
    let switches = [
        ("iommu", from.iommu, "there is no virtual IOMMU"),
        ("watchdog", from.watchdog, "there is no watchdog"),
        ("pvpanic", from.pvpanic, "there is no pvpanic device"),
        ("gdb", from.gdb, "there is no debugger: it would read private memory"),
        ("landlock_enable", from.landlock_enable, "there is no Landlock yet"),
    ];
    for (field, switch, reason) in switches {
        refuse(field, switch == Some(true), &format!("{reason}: leave it out"))?;
    }
    Ok(())
}

fn is_off(console: &Unsupported) -> bool {
    console.is_nothing() || console.0.get("mode").and_then(Value::as_str) == Some("Off")
}

/// Device names are unique.
fn check_ids(config: &to::VmConfig) -> Result<(), ConfigError> {
    let disks = config.disks.iter().enumerate().map(|(i, disk)| (format!("disks[{i}].id"), &disk.id));
    let nets = config.nets.iter().enumerate().map(|(i, net)| (format!("net[{i}].id"), &net.id));
    let vsock = config.vsock.iter().map(|vsock| ("vsock.id".to_owned(), &vsock.id));
    let mut seen = std::collections::BTreeSet::new();
    for (field, id) in disks.chain(nets).chain(vsock) {
        if let Some(id) = id
            && !seen.insert(id)
        {
            return Err(ConfigError::clash(field, format!("{id:?} is the name of another device already")));
        }
    }
    Ok(())
}

/// There is a slot of the PCI bus for each device. So nothing that is done for each device is done without limit.
fn check_slots(config: &to::VmConfig) -> Result<(), ConfigError> {
    let (count, slots) = (config.devices_on_bus(), to::DEVICE_SLOTS);
    if count <= usize::from(slots) {
        return Ok(());
    }
    let field = if config.disks.len() >= config.nets.len() { "disks" } else { "net" };
    let reason = format!(
        "the machine would have {count} devices (its random numbers, console and balloon count, too), and the PCI bus has \
         slots for {slots}: leave some out, or remove some"
    );
    Err(ConfigError::clash(field, reason))
}

fn one<'a, F, T: TryFrom<&'a F, Error = ConfigError>>(
    field: &str,
    from: Option<&'a F>,
) -> Result<Option<T>, ConfigError> {
    from.map(T::try_from).transpose().map_err(|error| error.inside(field))
}

fn all<'a, F, T: TryFrom<&'a F, Error = ConfigError>>(
    field: &str,
    from: Option<&'a [F]>,
) -> Result<Vec<T>, ConfigError> {
    let items = from.unwrap_or_default().iter().enumerate();
    items.map(|(i, item)| T::try_from(item).map_err(|error| error.inside(&format!("{field}[{i}]")))).collect()
}

impl TryFrom<&CpusConfig> for to::CpusConfig {
    type Error = ConfigError;

    fn try_from(from: &CpusConfig) -> Result<Self, ConfigError> {
        refuse("boot_vcpus", from.boot_vcpus == 0, "a machine has at least one processor")?;
        let max = from.max_vcpus.unwrap_or(from.boot_vcpus);
        refuse("max_vcpus", max < from.boot_vcpus, "it is less than boot_vcpus: leave it out, or raise it")?;
        refuse(
            "max_vcpus",
            max > from.boot_vcpus,
            "no processors are added later: leave it out, or boot with as many",
        )?;
        // What CPUID tells the guest.
        let topology = from.topology.as_ref().is_none_or(|topology| {
            let CpuTopology { threads_per_core, cores_per_die, dies_per_package, packages } = topology;
            (*threads_per_core, *dies_per_package, *packages) == (1, 1, 1)
                && *cores_per_die == u16::from(from.boot_vcpus)
        });
        let reason = "processors are cores of one thread, all in one die and package: leave it out";
        refuse("topology", !topology, reason)?;
        let limited = from.max_phys_bits.is_some_and(|bits| bits < DEFAULT_PHYS_BITS);
        refuse("max_phys_bits", limited, "the guest has the addresses of the host's processor: leave it out")?;
        let scheduling = from.core_scheduling.as_deref().is_none_or(|which| matches!(which, "Vm" | "Off"));
        let reason = "which threads share a core is the host's to decide: leave it out, or switch off the host's SMT";
        refuse("core_scheduling", !scheduling, reason)?;
        refuse("kvm_hyperv", from.kvm_hyperv == Some(true), "there are no Hyper-V enlightenments: leave it out")?;
        let affinity = from.affinity.as_ref().is_some_and(|affinity| !affinity.is_nothing());
        refuse("affinity", affinity, "processors are not pinned: use taskset on the threads vcpuN")?;
        let amx = from.features.as_ref().is_some_and(|features| features.amx == Some(true));
        refuse("features.amx", amx, "it can't be asked for: leave it out")?;
        Ok(Self { boot: from.boot_vcpus })
    }
}

impl TryFrom<&MemoryConfig> for to::MemoryConfig {
    type Error = ConfigError;

    fn try_from(from: &MemoryConfig) -> Result<Self, ConfigError> {
        for (field, size) in [("hotplug_size", from.hotplug_size), ("hotplugged_size", from.hotplugged_size)] {
            let given = size.is_some_and(|size| size != 0);
            refuse(field, given, "memory does not grow: leave it out, and give all of it with size")?;
        }
        let method = from.hotplug_method.as_deref().is_none_or(|method| method.eq_ignore_ascii_case("acpi"));
        refuse("hotplug_method", !method, "memory does not grow: leave it out")?;
        let merge =
            "memory is never offered to the host for merging, which can tell one guest of another's: leave it out";
        refuse("mergeable", from.mergeable == Some(true), merge)?;
        refuse(
            "reserve",
            from.reserve == Some(true),
            "memory is taken from the host as the guest touches it: leave it out",
        )?;
        refuse("thp", from.thp == Some(false), "whether pages are huge is the host's setting: leave it out")?;
        refuse("hugepages", from.hugepages == Some(true), "pages are those of the host's shmem: see its huge setting")?;
        let huge = from.hugepage_size.is_some_and(|size| size != 0);
        refuse("hugepage_size", huge, "pages are those of the host's shmem: leave it out")?;
        refuse("prefault", from.prefault == Some(true), "memory is given as the guest touches it: leave it out")?;
        let zones = from.zones.as_ref().is_some_and(|zones| !zones.is_nothing());
        refuse("zones", zones, "memory is in one zone: give its size")?;
        Ok(Self { size: from.size, unmappable: from.unmappable, window: from.window.unwrap_or(0) })
    }
}

fn isolation(from: &PlatformConfig) -> Result<Option<Isolation>, ConfigError> {
    refuse("num_pci_segments", from.num_pci_segments.is_some_and(|count| count != 1), "there is one PCI segment")?;
    let segments = from.iommu_segments.as_ref().is_some_and(|segments| !segments.is_empty());
    refuse("iommu_segments", segments, "there is no virtual IOMMU: leave it out")?;
    let texts = [
        ("system_serial_number", &from.system_serial_number),
        ("serial_number", &from.serial_number),
        ("system_uuid", &from.system_uuid),
        ("uuid", &from.uuid),
        ("system_manufacturer", &from.system_manufacturer),
        ("system_product_name", &from.system_product_name),
        ("system_version", &from.system_version),
        ("system_family", &from.system_family),
        ("system_sku_number", &from.system_sku_number),
        ("chassis_asset_tag", &from.chassis_asset_tag),
    ];
    for (field, text) in texts {
        refuse(field, text.is_some(), NO_SMBIOS)?;
    }
    let oem = from.oem_strings.as_ref().is_some_and(|strings| !strings.is_empty());
    refuse("oem_strings", oem, NO_SMBIOS)?;
    refuse("tdx", from.tdx == Some(true), "TDX is not there yet: choose isolation software")?;
    refuse("sev_snp", from.sev_snp == Some(true), "SEV-SNP is not there yet: choose isolation software")?;
    refuse("iommufd", from.iommufd == Some(true), "there is no VFIO: leave it out")?;
    Ok(match from.isolation {
        None | Some(IsolationName::Auto) => None,
        Some(IsolationName::None) => Some(Isolation::None),
        Some(IsolationName::Software) => Some(Isolation::Software),
    })
}
