//! Hosts on which `/dev/kvm` can't be used.
//!
//! Each case makes a `/dev/kvm` of its own in a mount namespace that nobody else sees, and ends with the process.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::Context;
use kvm_tests::requirement::Unavailable;

use crate::{Test, Umbra};

pub const TESTS: &[Test] = &[
    ("without_permission_for_kvm_the_error_says_how_to_get_it", no_permission),
    ("without_kvm_the_error_says_how_to_get_it", no_device),
];

/// User and group "nobody".
const NOBODY: &str = "65534";

fn no_permission() -> anyhow::Result<()> {
    let umbra = Umbra::new()?;
    let words = ["/dev/kvm", "Permission denied", "group", "root"];
    // The program and its folder must be within that user's reach; the device must not.
    let program = umbra.path("umbra");
    std::fs::copy(&umbra.program, &program).context("cannot copy the program")?;
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    std::fs::set_permissions(umbra.folder.path(), PermissionsExt::from_mode(0o755))?;
    let closed = umbra.file("closed", &[])?;
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o600))?;
    let setup = r#"mount --bind closed /dev/kvm && exec setpriv --reuid "$0" --regid "$0" --clear-groups ./umbra "$@""#;
    umbra.rejects(in_mount_namespace(setup, NOBODY)?.arg("check"), 1, &words)?;
    umbra.rejects(in_mount_namespace(setup, NOBODY)?.args(["run", "--kernel", "kernel"]), 1, &words)
}

fn no_device() -> anyhow::Result<()> {
    let umbra = Umbra::new()?;
    let words = ["/dev/kvm", "No such file", "kvm_amd", "cargo lab"];
    let setup = r#"mount -t tmpfs none /dev && exec "$0" "$@""#;
    let program = umbra.program.to_str().context("the program's path is no text")?;
    umbra.rejects(in_mount_namespace(setup, program)?.arg("check"), 1, &words)?;
    umbra.rejects(in_mount_namespace(setup, program)?.args(["check", "--json"]), 1, &words)?;
    umbra.rejects(in_mount_namespace(setup, program)?.args(["run", "--kernel", "kernel"]), 1, &words)
}

/// A shell script in a mount namespace of its own, with `zeroth` as its `$0`. Arguments follow.
fn in_mount_namespace(script: &str, zeroth: &str) -> anyhow::Result<Command> {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "setpriv", "--reuid", NOBODY, "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        let what = "root, and unshare and setpriv of util-linux, to take /dev/kvm away from a process";
        return Err(Unavailable::Needs(what.into()).into());
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, zeroth]);
    Ok(command)
}
