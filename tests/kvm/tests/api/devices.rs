//! Devices that come and go by the API while a guest runs: what each has on the host's side is there while it is, and no
//! longer.
//!
//! The guest does nothing with them but let go of them when it is told to; what Debian's kernel does is in the test `devices`.

use anyhow::{Context, ensure};
use arch::x86_64::map::SLOTS_EJECT_PORT;
use kvm_tests::hostile::{Boot, HostileGuest};
use kvm_tests::linux::namespace::in_own_network;
use serde_json::{Value, json};
use umbra_api::client::Client;

use crate::Test;
use crate::bed::{does, may_not};

pub const TESTS: &[Test] =
    &[("disks_networks_and_sockets_come_and_go_with_all_that_they_have", || in_own_network(come_and_go))];

const TAP: &str = "lab1";

/// The names of the devices of a machine that runs.
fn names(client: &Client) -> anyhow::Result<Vec<String>> {
    let counters = does(client, "vm.counters", None)?;
    Ok(counters.as_object().context("no counters")?.keys().cloned().collect())
}

fn come_and_go() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (disk, socket) = (folder.path().join("disk"), folder.path().join("socket"));
    std::fs::File::create(&disk)?.set_len(1 << 20)?;
    let mut guest = HostileGuest::boot_with(&Boot { api: true, ..Boot::default() })?;
    let client = Client::new(&guest.api_socket());
    let before = names(&client)?;
    let devices = [
        ("vm.add-disk", json!({ "id": "disk", "path": disk })),
        ("vm.add-net", json!({ "id": "net", "tap": TAP, "ip": "10.79.0.1", "mask": "255.255.255.0" })),
        ("vm.add-vsock", json!({ "id": "vsock", "cid": 5, "socket": socket })),
    ];
    // Twice: places, names, file, interface and socket are free again.
    let mut removed = 0;
    for _ in 0..2 {
        let mut slots = 0u32;
        for (operation, config) in &devices {
            let added = does(&client, operation, Some(config.clone()))?;
            ensure!(added["id"] == config["id"], "{operation} came to {added}");
            slots |= 1 << slot(&added)?;
        }
        ensure!(slots.count_ones() == 3 && has_tap()? && socket.exists(), "not all of it is there");
        let again = Some(json!({ "path": disk }));
        may_not(&client, "vm.add-disk", again, 400, "in use")?;

        for (_, config) in &devices {
            does(&client, "vm.remove-device", Some(json!({ "id": config["id"] })))?;
        }
        // They work until the guest has let go of them.
        ensure!(
            names(&client)?.len() == before.len() + 3 && has_tap()? && socket.exists(),
            "something is gone already"
        );
        ensure!(told_removed(&guest)? == removed, "they are told to be gone, and are not");
        guest.writes_wide_port(SLOTS_EJECT_PORT, slots)?;
        ensure!(names(&client)? == before, "{:?}, and before {before:?}", names(&client)?);
        ensure!(!has_tap()?, "the interface is left");
        ensure!(!socket.exists(), "the socket is left");
        removed += devices.len();
        ensure!(told_removed(&guest)? == removed, "that they are gone is not told, or not once");
    }
    ensure!(guest.powers_off()?.status.success());
    Ok(())
}

/// How many devices have been told to be gone.
fn told_removed(guest: &HostileGuest) -> anyhow::Result<usize> {
    Ok(std::fs::read_to_string(guest.events())?.matches("\"device-removed\"").count())
}

/// The slot of a device that was added, from `0000:00:06.0`.
fn slot(added: &Value) -> anyhow::Result<u32> {
    let bdf = added["bdf"].as_str().and_then(|bdf| bdf.strip_prefix("0000:00:")?.strip_suffix(".0"));
    let slot = bdf.with_context(|| format!("there is no place in {added}"))?;
    Ok(u32::from_str_radix(slot, 16)?)
}

/// Whether the interface is there, in the network of this thread and of the `umbra` that it started.
fn has_tap() -> anyhow::Result<bool> {
    Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?.contains(&format!("{TAP}:")))
}
