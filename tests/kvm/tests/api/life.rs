//! The machine's life over the API.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::Test;
use crate::bed::Bed;

pub const TESTS: &[Test] = &[
    ("a_machine_lives_over_the_api", lives),
    ("calls_out_of_order_are_refused", out_of_order),
    ("mistakes_in_a_machine_are_named_and_cost_nothing", mistakes),
];

fn state(bed: &Bed) -> anyhow::Result<Value> {
    Ok(bed.does("vm.info", None)?["state"].clone())
}

fn lives() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    bed.does("vm.create", Some(bed.config()))?;
    ensure!(state(&bed)? == "Created");
    bed.does("vm.boot", None)?;
    bed.comes_up(1)?;
    ensure!(state(&bed)? == "Running");
    ensure!(bed.does("vm.info", None)?["isolation"] == "software");
    bed.does("vm.pause", None)?;
    ensure!(state(&bed)? == "Paused");
    ensure!(bed.does("vm.memory-stats", None)?["ram_bytes"] == 64 << 20, "a paused machine can be looked into");
    bed.does("vm.resume", None)?;
    bed.does("vm.reboot", None)?;
    bed.comes_up(2)?;
    ensure!(state(&bed)? == "Running");
    bed.does("vm.pause", None)?;
    bed.does("vm.reboot", None)?;
    bed.comes_up(3)?;
    bed.does("vm.shutdown", None)?;
    ensure!(state(&bed)? == "Shutdown");
    bed.does("vm.boot", None)?;
    bed.comes_up(4)?;
    ensure!(bed.does("vm.info", None)?["config"] == bed.config(), "the configuration is as it was given");
    bed.does("vm.nmi", None)?;
    bed.does("vm.delete", None)?;
    bed.may_not("vm.info", None, 404, "there is no machine")?;
    bed.ends()
}

fn out_of_order() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let steered = ["vm.boot", "vm.shutdown", "vm.reboot", "vm.pause", "vm.resume", "vm.power-button", "vm.nmi"];
    for operation in steered.into_iter().chain(["vm.info", "vm.counters", "vm.memory-map", "vm.memory-stats"]) {
        bed.may_not(operation, None, 404, "there is no machine")?;
    }
    bed.does("vm.create", Some(bed.config()))?;
    bed.may_not("vm.create", Some(bed.config()), 409, "already")?;
    for operation in &steered[1..] {
        bed.may_not(operation, None, 405, "not booted")?;
    }
    bed.does("vm.boot", None)?;
    bed.may_not("vm.boot", None, 405, "runs already")?;
    bed.may_not("vm.resume", None, 405, "not paused")?;
    bed.does("vm.pause", None)?;
    bed.may_not("vm.pause", None, 405, "paused already")?;
    bed.may_not("vm.boot", None, 405, "vm.resume")?;
    bed.ends()
}

fn mistakes() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let with = |section: &str, value: Value| {
        let mut config = bed.config();
        config[section] = value;
        Some(config)
    };
    bed.may_not("vm.create", with("colour", json!("red")), 400, "colour")?;
    bed.may_not("vm.create", with("fs", json!([{ "tag": "x" }])), 400, "fs")?;
    bed.may_not("vm.create", with("platform", json!({ "isolation": "none" })), 400, "contradict")?;
    // These are seen when it is built.
    for (section, value, words) in [
        ("payload", json!({ "kernel": "/no/such/kernel" }), "/no/such/kernel"),
        ("payload", json!({ "kernel": "/proc/version" }), "/proc/version"),
        ("memory", json!({ "size": 1000, "unmappable": true }), "1000 bytes"),
        ("memory", json!({ "size": 9u64 << 40, "unmappable": true }), "give the guest less memory"),
        ("memory", json!({ "size": 60u64 << 40, "unmappable": true }), "attribute map"),
        ("memory", json!({ "size": 64 << 20, "unmappable": true, "window": 64 << 20 }), "a window of"),
        ("serial", json!({ "mode": "File", "file": "/no/such/file" }), "/no/such/file"),
    ] {
        bed.does("vm.create", with(section, value))?;
        bed.may_not("vm.boot", None, 400, words)?;
        ensure!(state(&bed)? == "Created");
        bed.does("vm.delete", None)?;
    }
    bed.does("vm.create", Some(bed.config()))?;
    bed.does("vm.boot", None)?;
    bed.comes_up(1)?;
    bed.ends()
}
