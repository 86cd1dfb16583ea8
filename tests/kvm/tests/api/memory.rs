//! What the API says of memory and does to it, against what the guest sees and what lies in the VMM's memory.

use anyhow::{Context, ensure};
use hypervisor::GpaRange;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::hostile::{Boot, HostileGuest};
use serde_json::{Value, json};
use umbra_api::client::Client;

use crate::Test;
use crate::bed::{does, may_not};

pub const TESTS: &[Test] = &[
    ("the_window_is_converted_and_contents_are_gone", converts),
    ("the_map_follows_the_guest", follows),
    ("a_policy_holds_from_the_next_conversion_on", policy),
];

const MIB: u64 = 1 << 20;
const PAGE: u64 = kvm_tests::PAGE;
/// The window of a guest of 64 MiB begins here.
const WINDOW: u64 = 48 * MIB;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
const OPEN: u64 = 0x09e2_0092_e009_2e01;

fn guest() -> anyhow::Result<(HostileGuest, Client)> {
    let guest = HostileGuest::boot_with(&Boot { memory: "64M,window=16M", api: true, ..Boot::default() })?;
    let client = Client::new(&guest.api_socket());
    Ok((guest, client))
}

fn request(gpa: u64, size: u64, to: &str) -> Option<Value> {
    Some(json!({ "gpa": gpa, "size": size, "to": to, "contents": "discard" }))
}

/// The runs that are shared.
fn shared(client: &Client) -> anyhow::Result<Vec<(u64, u64)>> {
    let map = client.call("vm.memory-map", &[("state", "shared".into())], None, "application/json")?;
    let map: Value = serde_json::from_slice(&map.body)?;
    let runs = map["runs"].as_array().context("there are no runs")?;
    let run = |run: &Value| Some((run["gpa"].as_u64()?, run["size"].as_u64()?));
    runs.iter().map(|each| run(each).context("a run without numbers")).collect()
}

fn converts() -> anyhow::Result<()> {
    let (mut guest, client) = guest()?;
    let range = GpaRange::new(WINDOW + MIB, 4 * PAGE)?;
    guest.fills(Private, range, SECRET)?;
    let answer = does(&client, "vm.memory-convert", request(range.start(), range.len(), "shared"))?;
    ensure!(answer["contents"] == "discarded" && answer["changed_bytes"] == range.len(), "{answer}");
    guest.sees(Shared, range, 0)?;
    guest.fills(Shared, range, OPEN)?;
    ensure!(shared(&client)? == [(range.start(), range.len())]);
    ensure!(guest.shared_memory()?.allocated()? >= range.len());
    let answer = does(&client, "vm.memory-convert", request(range.start(), range.len(), "private"))?;
    ensure!(answer["contents"] == "discarded", "{answer}");
    guest.sees(Private, range, 0)?;
    guest.settles()?;
    ensure!(guest.shared_memory()?.allocated()? == 0, "the shared side is given back");
    ensure!(does(&client, "vm.memory-stats", None)?["shared_bytes"] == 0);

    // What the guest uses is not the operator's.
    let used = GpaRange::new(32 * MIB, PAGE)?;
    guest.fills(Private, used, SECRET)?;
    may_not(&client, "vm.memory-convert", request(used.start(), PAGE, "shared"), 409, "not all in the window")?;
    guest.sees(Private, used, SECRET)?;
    does(&client, "vmm.shutdown", None)?;
    ensure!(guest.is_ended()?.status.success());
    Ok(())
}

fn follows() -> anyhow::Result<()> {
    let (mut guest, client) = guest()?;
    ensure!(shared(&client)? == []);
    let range = GpaRange::new(32 * MIB, 3 * PAGE)?;
    guest.converts(range, Shared)?;
    ensure!(shared(&client)? == [(range.start(), range.len())]);
    let before = does(&client, "vm.memory-stats", None)?;
    guest.converts(GpaRange::new(32 * MIB + PAGE, PAGE)?, Private)?;
    ensure!(shared(&client)? == [(range.start(), PAGE), (range.start() + 2 * PAGE, PAGE)]);
    let after = does(&client, "vm.memory-stats", None)?;
    let explicit = |stats: &Value| stats["conversions_explicit"].as_u64();
    ensure!(explicit(&after) == explicit(&before).map(|count| count + 1), "{before} {after}");
    let picture = client.call("vm.memory-map", &[], None, "image/svg+xml")?;
    let picture = String::from_utf8(picture.body)?;
    ensure!(picture.starts_with("<svg") && picture.contains("window (16 MiB)") && picture.contains("shared (8 KiB)"));
    let metrics = String::from_utf8(client.call("vmm.metrics", &[], None, "*/*")?.body)?;
    ensure!(metrics.contains("umbra_memory_bytes{state=\"shared\"} 8192\n"), "{metrics}");
    ensure!(guest.powers_off()?.status.success());
    Ok(())
}

fn policy() -> anyhow::Result<()> {
    let (mut guest, client) = guest()?;
    let range = GpaRange::new(32 * MIB, PAGE)?;
    let all = does(&client, "vm.memory-policy.set", Some(json!({ "explicit": "refuse" })))?;
    ensure!(all == json!({ "explicit": "refuse", "implicit": "allow", "host": "allow" }), "{all}");
    guest.may_not_convert(range, Shared)?;
    does(&client, "vm.memory-policy.set", Some(json!({ "explicit": "1000/s", "host": "refuse" })))?;
    guest.converts(range, Shared)?;
    may_not(&client, "vm.memory-convert", request(WINDOW, PAGE, "shared"), 403, "refused by policy")?;
    ensure!(does(&client, "vm.memory-policy", None)?["explicit"] == "1000/s");
    ensure!(guest.powers_off()?.status.success());
    Ok(())
}
