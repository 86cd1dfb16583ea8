//! The table of fields: for each request, each field of Cloud Hypervisor's (and Umbra's own), a value as clients send it, and
//! what is done with it. It is driven through the server, and it is complete: a field that the document has and the table has
//! not fails the test, and so does one of the table that the document lacks.

#![expect(clippy::unwrap_used, reason = "what helpers of a test can't do fails it")]

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use umbra_api::client::{Client, ClientError};
use umbra_api::model::ModelHost;
use umbra_api::server::Server;
use umbra_api::{Controller, Settings};
use vmm::events::EventMonitor;

use Treatment::{Effectless, Honoured, Refused};

/// What is done with a field.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Treatment {
    /// It has its effect.
    Honoured,
    /// This value is taken, and nothing depends on it: what clients send where nobody asked for anything, or what could have no
    /// effect here. Where another value asks for something that Umbra does not do, that is a row of its own, refused.
    Effectless,
    /// This value is refused, by an error that names the field.
    Refused,
}

/// Schema, field, value, treatment.
type Row = (&'static str, &'static str, Value, Treatment);

fn table() -> Vec<Row> {
    vec![
        ("VmConfig", "cpus", json!({ "boot_vcpus": 1, "max_vcpus": 1 }), Honoured),
        ("VmConfig", "memory", json!({ "size": 67108864 }), Honoured),
        ("VmConfig", "payload", json!({ "kernel": "/k" }), Honoured),
        ("VmConfig", "disks", json!([{ "path": "/d" }]), Honoured),
        ("VmConfig", "net", json!([{ "tap": "t" }]), Honoured),
        ("VmConfig", "rng", json!({ "src": "/dev/urandom" }), Honoured),
        ("VmConfig", "balloon", json!({ "size": 0 }), Honoured),
        ("VmConfig", "serial", json!({ "mode": "Null" }), Honoured),
        ("VmConfig", "console", json!({ "mode": "Off" }), Honoured),
        ("VmConfig", "vsock", json!({ "cid": 3, "socket": "/v" }), Honoured),
        ("VmConfig", "platform", json!({ "num_pci_segments": 1 }), Honoured),
        ("VmConfig", "conversions", json!({ "host": "refuse" }), Honoured),
        ("VmConfig", "rtc", json!({ "iommu": false }), Effectless),
        ("VmConfig", "rtc", json!({ "iommu": true }), Refused),
        ("VmConfig", "rate_limit_groups", json!([{ "id": "g" }]), Refused),
        ("VmConfig", "fs", json!([{ "tag": "t", "socket": "/s" }]), Refused),
        ("VmConfig", "generic_vhost_user", json!([{ "socket": "/s" }]), Refused),
        ("VmConfig", "pmem", json!([{ "file": "/f" }]), Refused),
        ("VmConfig", "debug_console", json!({ "mode": "Tty" }), Refused),
        ("VmConfig", "devices", json!([{ "path": "/sys/x" }]), Refused),
        ("VmConfig", "user_devices", json!([{ "socket": "/s" }]), Refused),
        ("VmConfig", "vdpa", json!([{ "path": "/dev/vhost-vdpa-0" }]), Refused),
        ("VmConfig", "numa", json!([{ "guest_numa_id": 0 }]), Refused),
        ("VmConfig", "sgx_epc", json!([{ "id": "e" }]), Refused),
        ("VmConfig", "pci_segments", json!([{ "pci_segment": 1 }]), Refused),
        ("VmConfig", "tpm", json!({ "socket": "/t" }), Refused),
        ("VmConfig", "iommu", json!(true), Refused),
        ("VmConfig", "watchdog", json!(true), Refused),
        ("VmConfig", "pvpanic", json!(true), Refused),
        ("VmConfig", "gdb", json!(true), Refused),
        ("VmConfig", "landlock_enable", json!(true), Refused),
        ("VmConfig", "landlock_rules", json!([{ "path": "/", "access": "r" }]), Refused),
        ("PayloadConfig", "kernel", json!("/k"), Honoured),
        ("PayloadConfig", "cmdline", json!("console=ttyS0"), Honoured),
        ("PayloadConfig", "initramfs", json!("/i"), Honoured),
        ("PayloadConfig", "firmware", json!("/f"), Refused),
        ("PayloadConfig", "igvm", json!("/f"), Refused),
        ("PayloadConfig", "host_data", json!("00"), Refused),
        ("CpusConfig", "boot_vcpus", json!(1), Honoured),
        ("CpusConfig", "max_vcpus", json!(1), Effectless),
        ("CpusConfig", "max_vcpus", json!(8), Refused),
        (
            "CpusConfig",
            "topology",
            json!({ "threads_per_core": 1, "cores_per_die": 1, "dies_per_package": 1, "packages": 1 }),
            Honoured,
        ),
        (
            "CpusConfig",
            "topology",
            json!({ "threads_per_core": 1, "cores_per_die": 1, "dies_per_package": 1, "packages": 2 }),
            Refused,
        ),
        (
            "CpusConfig",
            "topology",
            json!({ "threads_per_core": 2, "cores_per_die": 1, "dies_per_package": 1, "packages": 1 }),
            Refused,
        ),
        ("CpusConfig", "kvm_hyperv", json!(true), Refused),
        ("CpusConfig", "max_phys_bits", json!(46), Effectless),
        ("CpusConfig", "max_phys_bits", json!(40), Refused),
        ("CpusConfig", "nested", json!(true), Effectless),
        ("CpusConfig", "nested", json!(false), Honoured),
        ("CpusConfig", "affinity", json!([{ "vcpu": 0, "host_cpus": [0] }]), Refused),
        ("CpusConfig", "features", json!({ "amx": true }), Refused),
        ("CpusConfig", "core_scheduling", json!("Vm"), Effectless),
        ("CpusConfig", "core_scheduling", json!("Off"), Effectless),
        ("CpusConfig", "core_scheduling", json!("Vcpu"), Refused),
        ("MemoryConfig", "size", json!(67108864), Honoured),
        ("MemoryConfig", "unmappable", json!(true), Honoured),
        ("MemoryConfig", "window", json!(1048576), Honoured),
        ("MemoryConfig", "hotplug_size", json!(0), Effectless),
        ("MemoryConfig", "hotplug_size", json!(1048576), Refused),
        ("MemoryConfig", "hotplugged_size", json!(1048576), Refused),
        ("MemoryConfig", "hotplug_method", json!("Acpi"), Effectless),
        ("MemoryConfig", "hotplug_method", json!("VirtioMem"), Refused),
        ("MemoryConfig", "mergeable", json!(true), Refused),
        ("MemoryConfig", "shared", json!(true), Effectless),
        ("MemoryConfig", "hugepages", json!(true), Refused),
        ("MemoryConfig", "hugepage_size", json!(2097152), Refused),
        ("MemoryConfig", "prefault", json!(true), Refused),
        ("MemoryConfig", "reserve", json!(true), Refused),
        ("MemoryConfig", "thp", json!(true), Effectless),
        ("MemoryConfig", "thp", json!(false), Refused),
        ("MemoryConfig", "zones", json!([{ "id": "z", "size": 1048576 }]), Refused),
        ("PlatformConfig", "isolation", json!("software"), Honoured),
        ("PlatformConfig", "access_platform", json!(true), Honoured),
        ("PlatformConfig", "num_pci_segments", json!(2), Refused),
        ("PlatformConfig", "iommu_segments", json!([1]), Refused),
        ("PlatformConfig", "iommu_address_width_bits", json!(48), Effectless),
        ("PlatformConfig", "system_serial_number", json!("s"), Refused),
        ("PlatformConfig", "serial_number", json!("s"), Refused),
        ("PlatformConfig", "system_uuid", json!("u"), Refused),
        ("PlatformConfig", "uuid", json!("u"), Refused),
        ("PlatformConfig", "oem_strings", json!(["o"]), Refused),
        ("PlatformConfig", "system_manufacturer", json!("m"), Refused),
        ("PlatformConfig", "system_product_name", json!("p"), Refused),
        ("PlatformConfig", "system_version", json!("v"), Refused),
        ("PlatformConfig", "system_family", json!("f"), Refused),
        ("PlatformConfig", "system_sku_number", json!("s"), Refused),
        ("PlatformConfig", "chassis_asset_tag", json!("c"), Refused),
        ("PlatformConfig", "tdx", json!(true), Refused),
        ("PlatformConfig", "sev_snp", json!(true), Refused),
        ("PlatformConfig", "iommufd", json!(true), Refused),
        ("PlatformConfig", "vfio_p2p_dma", json!(true), Effectless),
        ("DiskConfig", "path", json!("/d"), Honoured),
        ("DiskConfig", "readonly", json!(true), Honoured),
        ("DiskConfig", "num_queues", json!(2), Honoured),
        ("DiskConfig", "queue_size", json!(4), Honoured),
        ("DiskConfig", "queue_size", json!(2048), Refused),
        ("DiskConfig", "id", json!("d"), Honoured),
        ("DiskConfig", "id", json!("_rng0"), Refused),
        ("DiskConfig", "serial", json!("s"), Honoured),
        ("DiskConfig", "image_type", json!("Qcow2"), Refused),
        ("DiskConfig", "image_type", json!("FixedVhd"), Refused),
        // What `ch-remote add-disk` sends.
        ("DiskConfig", "image_type", json!("Unknown"), Honoured),
        ("DiskConfig", "image_type", json!("Raw"), Honoured),
        ("DiskConfig", "direct", json!(true), Refused),
        ("DiskConfig", "iommu", json!(true), Refused),
        ("DiskConfig", "vhost_user", json!(true), Refused),
        ("DiskConfig", "vhost_socket", json!("/s"), Refused),
        ("DiskConfig", "rate_limiter_config", json!({ "ops": { "size": 1, "refill_time": 1 } }), Refused),
        ("DiskConfig", "rate_limit_group", json!("g"), Refused),
        ("DiskConfig", "pci_segment", json!(1), Refused),
        ("DiskConfig", "pci_device_id", json!(5), Refused),
        ("DiskConfig", "queue_affinity", json!([{ "queue_index": 0, "host_cpus": [0] }]), Refused),
        ("DiskConfig", "disable_io_uring", json!(true), Effectless),
        ("DiskConfig", "disable_aio", json!(true), Effectless),
        ("DiskConfig", "backing_files", json!(true), Effectless),
        ("DiskConfig", "sparse", json!(true), Honoured),
        ("DiskConfig", "sparse", json!(false), Refused),
        ("DiskConfig", "lock_granularity", json!("ByteRange"), Effectless),
        ("NetConfig", "tap", json!("t"), Honoured),
        ("NetConfig", "ip", json!("192.168.249.1"), Honoured),
        ("NetConfig", "mask", json!("255.255.255.0"), Honoured),
        ("NetConfig", "mac", json!("12:34:56:78:9a:bc"), Honoured),
        ("NetConfig", "mtu", json!(1500), Honoured),
        ("NetConfig", "num_queues", json!(4), Honoured),
        ("NetConfig", "queue_size", json!(16), Honoured),
        ("NetConfig", "queue_size", json!(8), Refused),
        ("NetConfig", "id", json!("n"), Honoured),
        ("NetConfig", "offload_tso", json!(false), Honoured),
        ("NetConfig", "offload_ufo", json!(false), Honoured),
        ("NetConfig", "offload_csum", json!(false), Honoured),
        ("NetConfig", "host_mac", json!("12:34:56:78:9a:bc"), Refused),
        ("NetConfig", "iommu", json!(true), Refused),
        ("NetConfig", "vhost_user", json!(true), Refused),
        ("NetConfig", "vhost_socket", json!("/s"), Refused),
        ("NetConfig", "vhost_mode", json!("Client"), Effectless),
        ("NetConfig", "fds", json!([3]), Refused),
        ("NetConfig", "rate_limiter_config", json!({}), Refused),
        ("NetConfig", "pci_segment", json!(1), Refused),
        ("NetConfig", "pci_device_id", json!(5), Refused),
        ("VsockConfig", "cid", json!(3), Honoured),
        ("VsockConfig", "socket", json!("/v"), Honoured),
        ("VsockConfig", "id", json!("v"), Honoured),
        ("VsockConfig", "iommu", json!(true), Refused),
        ("VsockConfig", "pci_segment", json!(1), Refused),
        ("VsockConfig", "pci_device_id", json!(5), Refused),
        ("RngConfig", "src", json!("/dev/urandom"), Honoured),
        ("RngConfig", "id", json!("r"), Effectless),
        ("RngConfig", "iommu", json!(true), Refused),
        ("RngConfig", "pci_segment", json!(1), Refused),
        ("RngConfig", "pci_device_id", json!(5), Refused),
        ("BalloonConfig", "size", json!(4096), Honoured),
        ("BalloonConfig", "deflate_on_oom", json!(true), Honoured),
        ("BalloonConfig", "free_page_reporting", json!(true), Honoured),
        ("BalloonConfig", "statistics", json!(true), Refused),
        ("BalloonConfig", "id", json!("b"), Effectless),
        ("BalloonConfig", "iommu", json!(true), Refused),
        ("BalloonConfig", "pci_segment", json!(1), Refused),
        ("BalloonConfig", "pci_device_id", json!(5), Refused),
        ("ConsoleConfig", "mode", json!("Null"), Honoured),
        ("ConsoleConfig", "file", json!("/c"), Honoured),
        ("ConsoleConfig", "socket", json!("/s"), Refused),
        ("ConsoleConfig", "id", json!("c"), Effectless),
        ("ConsoleConfig", "iommu", json!(true), Refused),
        ("ConsoleConfig", "pci_segment", json!(1), Refused),
        ("ConsoleConfig", "pci_device_id", json!(5), Refused),
        ("SerialConfig", "mode", json!("Null"), Honoured),
        ("SerialConfig", "file", json!("/c"), Honoured),
        ("SerialConfig", "socket", json!("/s"), Refused),
        ("SerialConfig", "iommu", json!(true), Refused),
        ("Resize", "desired_vcpus", json!(2), Refused),
        ("Resize", "desired_ram", json!(4096), Refused),
        ("Resize", "desired_balloon", json!(4096), Honoured),
        ("RemoveDevice", "id", json!("d"), Honoured),
    ]
}

/// A whole machine with this field in it.
fn machine_with(schema: &str, field: &str, value: &Value) -> Value {
    let mut config = json!({ "payload": { "kernel": "/k" } });
    let (section, mut inner) = match schema {
        "VmConfig" => {
            config[field] = value.clone();
            return config;
        }
        "PayloadConfig" => ("payload", json!({ "kernel": "/k" })),
        "CpusConfig" => ("cpus", json!({ "boot_vcpus": 1 })),
        "MemoryConfig" => ("memory", json!({ "size": 67108864 })),
        "PlatformConfig" => ("platform", json!({})),
        "DiskConfig" => ("disks", json!({ "path": "/d" })),
        "NetConfig" => ("net", json!({})),
        "VsockConfig" => ("vsock", json!({ "cid": 3, "socket": "/v" })),
        "RngConfig" => ("rng", json!({ "src": "/r" })),
        "BalloonConfig" => ("balloon", json!({ "size": 0 })),
        "ConsoleConfig" => ("console", json!({ "mode": if field == "file" { "File" } else { "Off" } })),
        "SerialConfig" => ("serial", json!({ "mode": if field == "file" { "File" } else { "Off" } })),
        other => panic!("{other}"),
    };
    inner[field] = value.clone();
    config[section] = if matches!(section, "disks" | "net") { json!([inner]) } else { inner };
    config
}

/// What is told, without names, addresses and the most processors where they were not given; they are there.
fn without_made_up(mut told: Value, given: &Value) -> Value {
    if given["cpus"].is_object() && given["cpus"]["max_vcpus"].is_null() {
        let max = told["cpus"].as_object_mut().unwrap().remove("max_vcpus");
        assert_eq!(max.as_ref(), Some(&told["cpus"]["boot_vcpus"]));
    }
    for (section, made_up) in [("disks", &["id"][..]), ("net", &["id", "mac"]), ("vsock", &["id"])] {
        let given = |index: usize| if section == "vsock" { &given[section] } else { &given[section][index] };
        let devices = match &mut told[section] {
            Value::Array(devices) => devices.iter_mut().collect(),
            Value::Null => {
                told.as_object_mut().unwrap().remove(section);
                continue;
            }
            device => vec![device],
        };
        for (index, device) in devices.into_iter().enumerate() {
            for name in made_up.iter().filter(|name| given(index)[**name].is_null()) {
                assert!(device.as_object_mut().unwrap().remove(*name).is_some_and(|value| value.is_string()));
            }
        }
    }
    told
}

struct Bed {
    controller: Arc<Controller>,
    client: Client,
    server: Option<Server>,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Arc::new(ModelHost::default());
        let (controller, _) = Controller::new(host, Arc::new(EventMonitor::new()), Settings { keep: true });
        let server = Server::start(&folder.path().join("api"), controller.clone()).unwrap();
        let client = Client::new(&folder.path().join("api"));
        Self { controller, client, server: Some(server), _folder: folder }
    }

    fn put(&self, operation: &str, body: &Value) -> Result<Value, (u16, Vec<String>)> {
        match self.client.call(operation, &[], Some(body), "*/*") {
            Ok(answer) => Ok(serde_json::from_slice(&answer.body).unwrap_or_default()),
            Err(ClientError::Refused { status, chain }) => Err((status, chain)),
            Err(other) => panic!("{operation}: {other}"),
        }
    }

    /// Whether it was taken; if not, the error names the field.
    fn takes(&self, operation: &str, body: &Value, field: &str) -> bool {
        match self.put(operation, body) {
            Ok(_) => true,
            Err((400, chain)) => {
                assert!(chain.iter().any(|text| text.contains(field)), "{operation}: {field} is not in {chain:?}");
                false
            }
            Err(other) => panic!("{operation} {body}: {other:?}"),
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.end();
        }
        self.controller.close();
    }
}

#[test]
fn each_field_is_treated_as_the_table_says() {
    let bed = Bed::new();
    for (schema, field, value, treatment) in table() {
        if matches!(schema, "Resize" | "RemoveDevice") {
            continue;
        }
        let config = machine_with(schema, field, &value);
        let taken = bed.takes("vm.create", &config, field);
        assert_eq!(taken, treatment != Refused, "{schema}.{field} = {value}: {treatment:?}");
        if taken {
            // Nothing is lost: it is told as it was given, with what was left to Umbra.
            let info = bed.client.call("vm.info", &[], None, "*/*").unwrap();
            let info: Value = serde_json::from_slice(&info.body).unwrap();
            assert_eq!(without_made_up(info["config"].clone(), &config), config, "{schema}.{field}");
        }
        bed.client.call("vm.delete", &[], None, "*/*").unwrap();
    }
}

#[test]
fn devices_that_are_added_are_treated_the_same() {
    let bed = Bed::new();
    for (schema, field, value, treatment) in table() {
        let (operation, mut body) = match schema {
            "DiskConfig" => ("vm.add-disk", json!({ "path": "/d" })),
            "NetConfig" => ("vm.add-net", json!({})),
            "VsockConfig" => ("vm.add-vsock", json!({ "cid": 3, "socket": "/v" })),
            _ => continue,
        };
        bed.put("vm.create", &json!({ "payload": { "kernel": "/k" } })).unwrap();
        body[field] = value.clone();
        assert_eq!(bed.takes(operation, &body, field), treatment != Refused, "{schema}.{field} = {value}");
        bed.client.call("vm.delete", &[], None, "*/*").unwrap();
    }
}

#[test]
fn other_requests_are_treated_as_the_table_says() {
    let bed = Bed::new();
    let config = json!({ "payload": { "kernel": "/proc/self/exe" }, "balloon": { "size": 0 }, "disks": [{ "path": "/d", "id": "d" }] });
    bed.put("vm.create", &config).unwrap();
    bed.client.call("vm.boot", &[], None, "*/*").unwrap();
    for (schema, field, value, treatment) in table() {
        let operation = match schema {
            "Resize" => "vm.resize",
            "RemoveDevice" => "vm.remove-device",
            _ => continue,
        };
        let taken = bed.takes(operation, &json!({ field: value }), field);
        assert_eq!(taken, treatment != Refused, "{schema}.{field}");
    }
}

/// As `ch-remote` and other clients send it, with all fields, empty ones as null.
#[test]
fn a_request_with_all_fields_passes() {
    let bed = Bed::new();
    let config = json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1, "topology": null, "kvm_hyperv": false, "max_phys_bits": 46,
            "affinity": null, "features": { "amx": false }, "nested": true },
        "memory": { "size": 67108864, "mergeable": false, "hotplug_method": "Acpi", "hotplug_size": null,
            "hotplugged_size": null, "shared": true, "hugepages": false, "hugepage_size": null, "prefault": false,
            "reserve": false, "zones": null, "thp": true },
        "payload": { "firmware": null, "kernel": "/k", "cmdline": "console=ttyS0", "initramfs": null, "igvm": null },
        "rate_limit_groups": null,
        "disks": [{ "path": "/d", "readonly": false, "direct": false, "iommu": false, "num_queues": 1, "queue_size": 128,
            "vhost_user": false, "vhost_socket": null, "rate_limit_group": null, "rate_limiter_config": null, "id": null,
            "disable_io_uring": false, "disable_aio": false, "pci_segment": 0, "serial": null, "queue_affinity": null,
            "backing_files": false, "sparse": true, "image_type": "Unknown", "lock_granularity": "ByteRange" }],
        "net": [{ "tap": "t", "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "12:34:56:78:9a:bc", "host_mac": null,
            "mtu": null, "iommu": false, "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_socket": null,
            "vhost_mode": "Client", "id": null, "fds": null, "rate_limiter_config": null, "pci_segment": 0,
            "offload_tso": true, "offload_ufo": true, "offload_csum": true }],
        "rng": { "src": "/dev/urandom", "iommu": false },
        "balloon": null, "fs": null, "generic_vhost_user": null, "pmem": null,
        "serial": { "file": null, "mode": "Null", "iommu": false, "socket": null },
        "console": { "file": null, "mode": "Off", "iommu": false, "socket": null },
        "debug_console": { "file": null, "mode": "Off", "iobase": 233 },
        "devices": null, "user_devices": null, "vdpa": null,
        "vsock": { "cid": 3, "socket": "/v", "iommu": false, "id": null, "pci_segment": 0 },
        "iommu": false, "numa": null, "watchdog": false, "pvpanic": false, "pci_segments": null,
        "platform": { "num_pci_segments": 1, "iommu_segments": null, "iommu_address_width_bits": 64, "serial_number": null,
            "uuid": null, "oem_strings": null, "tdx": false, "sev_snp": false, "iommufd": false },
        "tpm": null, "landlock_enable": false, "landlock_rules": null,
    });
    bed.put("vm.create", &config).unwrap();
}

#[test]
fn the_table_has_all_fields_of_all_requests() {
    let document = serde_json::to_value(umbra_api::document::document()).unwrap();
    let rows: BTreeSet<_> =
        table().iter().map(|(schema, field, ..)| ((*schema).to_owned(), (*field).to_owned())).collect();
    let schemas: BTreeSet<_> = rows.iter().map(|(schema, _)| schema.clone()).collect();
    for schema in &schemas {
        let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let documented: BTreeSet<_> = properties.keys().cloned().collect();
        let listed: BTreeSet<_> = rows.iter().filter(|(of, _)| of == schema).map(|(_, field)| field.clone()).collect();
        assert_eq!(listed, documented, "{schema}");
    }
    // And all schemas that requests name are in it, but for Umbra's own of memory, which have tests of their own.
    let own = ["ConversionRequest", "PolicyConfig"];
    for (path, item) in document["paths"].as_object().unwrap() {
        let schema = &item["put"]["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let Some(name) = schema.as_str().and_then(|name| name.rsplit('/').next()) else { continue };
        assert!(schemas.contains(name) || own.contains(&name), "{path} takes {name}");
    }
}

/// What clients read of answers, and of which type it is.
#[test]
fn answers_have_cloud_hypervisors_fields() {
    let bed = Bed::new();
    let get = |operation: &str| -> Value {
        serde_json::from_slice(&bed.client.call(operation, &[], None, "*/*").unwrap().body).unwrap()
    };
    let ping = get("vmm.ping");
    assert!(ping["build_version"].is_string() && ping["version"].is_string());
    assert!(ping["pid"].is_i64() && ping["features"].is_array());
    let config = json!({
        "payload": { "kernel": "/proc/self/exe" }, "memory": { "size": 64 << 20 }, "balloon": { "size": 4 << 20 },
    });
    bed.put("vm.create", &config).unwrap();
    bed.client.call("vm.boot", &[], None, "*/*").unwrap();
    let added = bed.put("vm.add-disk", &json!({ "path": "/d" })).unwrap();
    assert!(added["id"].is_string() && added["bdf"].is_string());
    let info = get("vm.info");
    assert!(info["config"].is_object());
    // What the guest has given back is not counted.
    assert_eq!(info["memory_actual_size"], (64 << 20) - (4 << 20));
    assert_eq!(info["state"], "Running");
    let node = &info["device_tree"][added["id"].as_str().unwrap()];
    assert!(node["id"].is_string() && node["resources"].is_array() && node["children"].is_array());
    assert_eq!(node["pci_bdf"], added["bdf"]);
    let counters = get("vm.counters");
    assert!(
        counters.as_object().unwrap().values().all(|device| device.as_object().unwrap().values().all(Value::is_u64))
    );
}
