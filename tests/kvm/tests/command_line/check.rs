//! `umbra check`.

use std::process::Command;

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use kvm_tests::expect;
use kvm_tests::requirement::require_caps;
use kvm_tests::umbra::process::finish;
use serde_json::Value;

use crate::{LIMIT, Test, Umbra};

pub const TESTS: &[Test] = &[
    ("check_tells_what_this_host_can_do", text),
    ("check_tells_it_as_json", json),
    ("a_reader_that_goes_away_is_no_crash", reader_that_goes_away),
];

/// The status that says whether this host offers unmappable memory.
fn expected_status() -> anyhow::Result<i32> {
    let kvm = require_caps(&[])?;
    Ok(if Isolation::strongest(kvm.caps()).missing(kvm.caps()).is_empty() { 0 } else { 1 })
}

fn text() -> anyhow::Result<()> {
    let status = expected_status()?;
    let umbra = Umbra::new()?;
    let finished = umbra.finish(&mut umbra.command(&["check"]))?;
    expect::equal("exit status", finished.status.code(), Some(status))?;
    ensure!(finished.stderr.is_empty(), "{finished:?}");
    for word in ["KVM_CAP_GUEST_MEMFD", "KVM_CAP_VM_TYPES:sw-protected", "none", "software"] {
        ensure!(finished.stdout.contains(word), "{word} is not in {}", finished.stdout);
    }
    let kvm = require_caps(&[])?;
    for missing in Isolation::Software.missing(kvm.caps()) {
        ensure!(finished.stdout.contains(missing.remedy()), "the remedy for {missing} is not in {}", finished.stdout);
    }
    Ok(())
}

fn json() -> anyhow::Result<()> {
    let status = expected_status()?;
    let umbra = Umbra::new()?;
    let finished = umbra.finish(&mut umbra.command(&["check", "--json"]))?;
    expect::equal("exit status", finished.status.code(), Some(status))?;
    ensure!(finished.stderr.is_empty(), "{finished:?}");
    let report: Value = serde_json::from_str(&finished.stdout).context("cannot read the report")?;

    let kvm = require_caps(&[])?;
    let isolations = report["isolations"].as_array().context("there are no isolations")?;
    expect::equal("number of isolations", isolations.len(), Isolation::ALL.len())?;
    for isolation in Isolation::ALL {
        let told = isolations.iter().find(|told| told["name"] == isolation.name());
        let told = told.with_context(|| format!("there is no {isolation}"))?;
        let missing = isolation.missing(kvm.caps());
        expect::equal(format!("{isolation} available"), &told["available"], &Value::from(missing.is_empty()))?;
        expect::equal(format!("{isolation} unmappable"), &told["unmappable"], &isolation.is_unmappable().into())?;
        let names: Vec<_> = told["missing"].as_array().into_iter().flatten().map(|one| one["name"].clone()).collect();
        let expected: Vec<_> = missing.iter().map(|capability| Value::from(capability.name())).collect();
        expect::equal(format!("what {isolation} lacks"), names, expected)?;
    }
    for capability in report["capabilities"].as_array().context("there are no capabilities")? {
        ensure!(capability["name"].is_string() && capability["present"].is_boolean(), "{capability}");
    }
    Ok(())
}

fn reader_that_goes_away() -> anyhow::Result<()> {
    require_caps(&[])?;
    let umbra = Umbra::new()?;
    for arguments in [&["check"][..], &["check", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = Command::new("sh");
        // The shell gives the child this output and keeps standard output and error for the test.
        command.args(["-c", r#"exec "$0" "$@" >&0 0</dev/null"#]).arg(&umbra.program).args(arguments).stdin(writer);
        let finished = finish(&mut command, LIMIT)?;
        let quiet = !finished.stderr.contains("panicked") && finished.stderr.lines().count() <= 1;
        ensure!(quiet && finished.status.code().is_some_and(|code| code < 2), "{arguments:?}: {finished:?}");
    }
    Ok(())
}
