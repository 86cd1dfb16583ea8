//! A client of Cloud Hypervisor's that knows nothing of Umbra: the crate `cloud-hypervisor-client`, which others have generated
//! from Cloud Hypervisor's document. Each operation of its that Umbra has is called, with all that its types can say and with what
//! such clients send where nobody asked for anything; and its types must be able to read all answers.

#![expect(clippy::unwrap_used, reason = "what helpers of a test can't do fails it")]

use std::sync::Arc;

use cloud_hypervisor_client::apis::{DefaultApi, Error};
use cloud_hypervisor_client::models::{
    BalloonConfig, ConsoleConfig, ConsoleMode, CoreSchedulingMode, CpuFeatures, CpuTopology, CpusConfig,
    DebugConsoleConfig, DiskConfig, ImageType, LockGranularity, MemoryConfig, NetConfig, PayloadConfig, PlatformConfig,
    PmemConfig, RngConfig, SerialConfig, VmConfig, VmCoredumpData, VmRemoveDevice, VmResize, VmResizeDisk,
    VmSnapshotConfig, VmState, VsockConfig,
};
use cloud_hypervisor_client::{SocketBasedApiClient, socket_based_api_client};
use umbra_api::model::ModelHost;
use umbra_api::server::Server;
use umbra_api::{Controller, Settings};
use vmm::events::EventMonitor;

struct Bed {
    client: SocketBasedApiClient,
    controller: Arc<Controller>,
    server: Option<Server>,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (host, events) = (Arc::new(ModelHost::default()), Arc::new(EventMonitor::new()));
        let (controller, _) = Controller::new(host, events, Settings { keep: true });
        let server = Some(Server::start(&folder.path().join("api"), controller.clone()).unwrap());
        Self { client: socket_based_api_client(folder.path().join("api")), controller, server, _folder: folder }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.server.take().into_iter().for_each(Server::end);
        self.controller.close();
    }
}

/// All that its types have, where nobody asked for anything.
fn config() -> VmConfig {
    VmConfig {
        cpus: Some(CpusConfig {
            topology: Some(CpuTopology {
                threads_per_core: Some(1),
                cores_per_die: Some(2),
                dies_per_package: Some(1),
                packages: Some(1),
            }),
            kvm_hyperv: Some(false),
            max_phys_bits: Some(46),
            nested: Some(true),
            affinity: Some(vec![]),
            features: Some(CpuFeatures { amx: Some(false) }),
            core_scheduling: Some(CoreSchedulingMode::Vm),
            ..CpusConfig::new(2, 2)
        }),
        memory: Some(MemoryConfig {
            hotplug_size: Some(0),
            hotplugged_size: Some(0),
            mergeable: Some(false),
            hotplug_method: Some("Acpi".into()),
            shared: Some(false),
            hugepages: Some(false),
            prefault: Some(false),
            thp: Some(true),
            zones: Some(vec![]),
            ..MemoryConfig::new(64 << 20)
        }),
        disks: Some(vec![DiskConfig {
            path: Some("/d".into()),
            readonly: Some(false),
            direct: Some(false),
            iommu: Some(false),
            num_queues: Some(1),
            queue_size: Some(128),
            vhost_user: Some(false),
            pci_segment: Some(0),
            backing_files: Some(false),
            sparse: Some(true),
            image_type: Some(ImageType::Raw),
            lock_granularity: Some(LockGranularity::ByteRange),
            ..DiskConfig::new()
        }]),
        balloon: Some(BalloonConfig::new(0)),
        rng: Some(RngConfig::new("/dev/urandom".into())),
        serial: Some(SerialConfig::new(ConsoleMode::Null)),
        console: Some(ConsoleConfig::new(ConsoleMode::Off)),
        debug_console: Some(DebugConsoleConfig::new(ConsoleMode::Off)),
        platform: Some(PlatformConfig { num_pci_segments: Some(1), ..PlatformConfig::new() }),
        iommu: Some(false),
        watchdog: Some(false),
        pvpanic: Some(false),
        landlock_enable: Some(false),
        ..VmConfig::new(PayloadConfig { kernel: Some("/proc/self/exe".into()), ..PayloadConfig::new() })
    }
}

/// It is refused with this status, by an error in Cloud Hypervisor's form that has this in it.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, status: u16, words: &str) {
    match result {
        Err(Error::Api(error)) => {
            let chain: Vec<String> = serde_json::from_str(&error.body).unwrap();
            assert!(error.code.as_u16() == status && chain.concat().contains(words), "{} {chain:?}", error.code);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn lives_through_a_machine() {
    let bed = Bed::new();
    let client = &bed.client;
    let state = async || client.vm_info_get().await.unwrap().state;
    assert!(client.vmm_ping_get().await.unwrap().build_version.unwrap().contains("umbra"));
    refused(client.vm_info_get().await, 404, "there is no machine");
    client.create_vm(config()).await.unwrap();
    refused(client.create_vm(config()).await, 409, "already");
    let info = client.vm_info_get().await.unwrap();
    let (memory, cpus) = (info.config.memory.unwrap(), info.config.cpus.unwrap());
    assert_eq!((info.state, memory.size, cpus.max_vcpus), (VmState::Created, 64 << 20, 2));
    client.boot_vm().await.unwrap();
    assert_eq!(state().await, VmState::Running);
    let disk = DiskConfig { path: Some("/e".into()), image_type: Some(ImageType::Unknown), ..DiskConfig::new() };
    let disk = client.vm_add_disk_put(disk).await.unwrap();
    let net = client.vm_add_net_put(NetConfig { id: Some("net".into()), ..NetConfig::new() }).await.unwrap();
    let vsock = client.vm_add_vsock_put(VsockConfig::new(3, "/v".into())).await.unwrap();
    let tree = client.vm_info_get().await.unwrap().device_tree.unwrap();
    for device in [disk, net, vsock] {
        assert_eq!(tree[&device.id].pci_bdf, Some(device.bdf));
        assert!(client.vm_counters_get().await.unwrap().contains_key(&device.id));
        client.vm_remove_device_put(VmRemoveDevice { id: Some(device.id) }).await.unwrap();
    }
    client.vm_resize_put(VmResize { desired_balloon: Some(1 << 20), ..VmResize::new() }).await.unwrap();
    client.pause_vm().await.unwrap();
    assert_eq!(state().await, VmState::Paused);
    client.resume_vm().await.unwrap();
    client.reboot_vm().await.unwrap();
    client.shutdown_vm().await.unwrap();
    assert_eq!(state().await, VmState::Shutdown);
    client.boot_vm().await.unwrap();
    client.power_button_vm().await.unwrap();
    client.delete_vm().await.unwrap();
    client.shutdown_vmm().await.unwrap();
}

#[tokio::test]
async fn is_told_what_can_not_be_had() {
    let bed = Bed::new();
    let client = &bed.client;
    let more = VmConfig { cpus: Some(CpusConfig::new(1, 4)), ..config() };
    refused(client.create_vm(more).await, 400, "cpus.max_vcpus");
    let more = MemoryConfig { hotplug_size: Some(1 << 30), ..MemoryConfig::new(64 << 20) };
    refused(client.create_vm(VmConfig { memory: Some(more), ..config() }).await, 400, "memory.hotplug_size");
    refused(client.vm_resize_put(VmResize { desired_vcpus: Some(2), ..VmResize::new() }).await, 400, "desired_vcpus");
    refused(client.vm_snapshot_put(VmSnapshotConfig::new()).await, 400, "not supported");
    refused(client.vm_coredump_put(VmCoredumpData::new()).await, 400, "not supported");
    refused(client.vm_add_pmem_put(PmemConfig::new("/f".into())).await, 400, "not supported");
    refused(client.vm_resize_disk_put(VmResizeDisk::new()).await, 400, "not supported");
    refused(client.boot_vm().await, 404, "there is no machine");
    // Its document has the wrong name for vm.nmi, as Cloud Hypervisor's had, which does not answer to that either.
    refused(client.vmm_nmi_put().await, 404, "openapi.json");
}

/// What a machine is that says nothing of all this: its types need the most processors all the same.
#[tokio::test]
async fn reads_a_machine_that_others_made() {
    let bed = Bed::new();
    let config = serde_json::json!({ "payload": { "kernel": "/k" }, "cpus": { "boot_vcpus": 3 }, "vsock": { "cid": 3, "socket": "/v" },
        "memory": { "size": 67108864, "unmappable": true }, "platform": { "isolation": "auto" }, "conversions": { "host": "refuse" } });
    bed.controller.create(serde_json::from_value(config).unwrap()).unwrap();
    assert_eq!(bed.client.vm_info_get().await.unwrap().config.cpus.unwrap().max_vcpus, 3);
}
