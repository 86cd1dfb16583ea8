//! The network of the full demonstration: a namespace with a tap, and addresses at both of its ends.
//!
//! The namespace is that of the thread which enters it, and of the threads and processes that it starts; with the last of them
//! it is gone, and so is all that was set up in it.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The name of the tap.
pub const TAP: &str = "umbra0";
/// The host's address.
pub const HOST: &str = "10.77.0.1";
/// The guest's address, which its image sets.
pub const GUEST: &str = "10.77.0.2";
/// The guest's hardware address: one that is administered locally.
pub const MAC: &str = "02:00:00:00:00:4d";

/// Moves this thread, and those that it starts from now on, into a network namespace of its own, and makes the tap there.
#[expect(unsafe_code, reason = "unsharing can leave threads of one process in different namespaces")]
pub fn enter() -> Result<()> {
    // SAFETY: no flag but that of the network namespace is given, so descriptors, memory and file systems stay shared as
    // they are; threads that exist already only stay in the old namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .context("cannot make a network namespace (it takes root on the machine that runs the guest)")?;
    let address = format!("{HOST}/24");
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["tuntap", "add", "dev", TAP, "mode", "tap"],
        &["address", "add", &address, "dev", TAP],
        &["link", "set", TAP, "up"],
    ] {
        ip(arguments)?;
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip, of the package iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "ip {} failed: {}", arguments.join(" "), said.trim());
    Ok(())
}
