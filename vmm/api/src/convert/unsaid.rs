//! What a configuration leaves to Umbra and what must stay the same from then on: names of devices and hardware addresses. And
//! what Cloud Hypervisor's document promises that `vm.info` tells, where it was not said: the most processors that there can be.
//!
//! It is filled in once, when a machine is created or a device is added, and told by `vm.info`. So a guest finds its network
//! device again after each reset, and a device can be removed by the name that it is listed under. The time that it takes grows
//! with the number of devices, and not faster.

use std::collections::{BTreeMap, HashSet};
use std::io;

use crate::types::VmConfig;

/// Fills in names, in the form that devices have without one (`_disk0`), and hardware addresses. These names are taken
/// besides those in the configuration.
///
/// # Errors
/// The system has no random numbers.
pub(crate) fn fill_in(config: &mut VmConfig, taken: &[String]) -> io::Result<()> {
    if let Some(cpus) = &mut config.cpus {
        cpus.max_vcpus.get_or_insert(cpus.boot_vcpus);
    }
    for net in config.net.iter_mut().flatten() {
        if net.mac.is_none() {
            net.mac = Some(make_mac()?);
        }
    }
    let disks = || config.disks.iter().flatten().filter_map(|disk| disk.id.clone());
    let nets = || config.net.iter().flatten().filter_map(|net| net.id.clone());
    let vsock = config.vsock.iter().filter_map(|vsock| vsock.id.clone());
    let mut taken: HashSet<String> = disks().chain(nets()).chain(vsock).chain(taken.iter().cloned()).collect();
    let mut numbers = BTreeMap::new();
    let mut name = |kind| {
        // No name becomes free meanwhile: those that were tried need not be tried again.
        let numbers = numbers.entry(kind).or_insert(0u64..);
        let mut names = numbers.map(|number| format!("_{kind}{number}"));
        let name = names.find(|name| !taken.contains(name)).unwrap_or_default();
        taken.insert(name.clone());
        name
    };
    for disk in config.disks.iter_mut().flatten().filter(|disk| disk.id.is_none()) {
        disk.id = Some(name("disk"));
    }
    for net in config.net.iter_mut().flatten().filter(|net| net.id.is_none()) {
        net.id = Some(name("net"));
    }
    for vsock in config.vsock.iter_mut().filter(|vsock| vsock.id.is_none()) {
        vsock.id = Some(name("vsock"));
    }
    Ok(())
}

/// A hardware address that nobody else has, as far as chance goes: one of those that are administered locally.
fn make_mac() -> io::Result<String> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())?;
    mac[0] = (mac[0] & 0xfc) | 2;
    Ok(mac.map(|byte| format!("{byte:02x}")).join(":"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::DiskConfig;

    #[test]
    fn very_many_names_are_made_up_at_once() {
        let disks = vec![DiskConfig::default(); 100_000];
        let mut config = VmConfig { disks: Some(disks), ..VmConfig::default() };
        let taken: Vec<_> = (0..50_000).map(|number| format!("_disk{}", 2 * number)).collect();
        // It would take days, were all names looked through for each.
        fill_in(&mut config, &taken).unwrap();
        let names: Vec<_> = config.disks.unwrap().into_iter().filter_map(|disk| disk.id).collect();
        assert_eq!((&*names[0], &*names[1], &*names[99_999]), ("_disk1", "_disk3", "_disk149999"));
    }

    #[test]
    fn what_is_said_stays_and_what_is_made_up_is_nobodys() {
        let config = json!({ "payload": { "kernel": "/k" }, "cpus": { "boot_vcpus": 3 }, "disks": [{ "path": "/a" }, { "path": "/b", "id": "_disk1" }],
            "net": [{ "mac": "12:34:56:78:9a:bc" }, { "id": "n" }], "vsock": { "cid": 3, "socket": "/v" } });
        let mut config: VmConfig = serde_json::from_value(config).unwrap();
        fill_in(&mut config, &["_disk0".into()]).unwrap();
        let filled = config.clone();
        fill_in(&mut config, &[]).unwrap();
        assert_eq!(config, filled, "it is filled in once");
        assert_eq!(config.cpus.as_ref().and_then(|cpus| cpus.max_vcpus), Some(3));
        let (disks, nets) = (config.disks.unwrap(), config.net.unwrap());
        assert_eq!((disks[0].id.as_deref(), disks[1].id.as_deref()), (Some("_disk2"), Some("_disk1")));
        assert_eq!((nets[0].id.as_deref(), nets[1].id.as_deref()), (Some("_net0"), Some("n")));
        assert_eq!(nets[0].mac.as_deref(), Some("12:34:56:78:9a:bc"));
        assert_eq!(config.vsock.unwrap().id.as_deref(), Some("_vsock0"));
        assert!(vmm::config::NetConfig::try_from(&nets[1]).unwrap().mac.is_some_and(|mac| mac[0] & 3 == 2));
    }
}
