//! Command lines that make no sense: status 2, before anything is looked at.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::ensure;

use crate::{Test, Umbra};

pub const TESTS: &[Test] = &[
    ("unknown_commands_and_flags_are_usage_errors", unknown),
    ("option_values_that_make_no_sense_are_usage_errors", values),
    ("help_and_version_are_none", help),
];

fn unknown() -> anyhow::Result<()> {
    let umbra = Umbra::new()?;
    let cases: [(&[&str], &[&str]); 8] = [
        (&["walk"], &["walk", "--help"]),
        (&["--walk"], &["--walk", "--help"]),
        (&["run"], &["--kernel", "--help"]),
        (&["run", "--kernel"], &["--kernel"]),
        (&["run", "--kernel", ""], &["--kernel"]),
        (&["run", "--kernel", "k", "--frobnicate"], &["--frobnicate", "--help"]),
        (&["run", "--kernel", "k", "--kernel", "l"], &["--kernel", "multiple times"]),
        (&["check", "--kernel", "k"], &["--kernel"]),
    ];
    for (arguments, words) in cases {
        umbra.rejects(&mut umbra.command(arguments), 2, words)?;
    }
    let not_text = OsStr::from_bytes(b"\xff");
    umbra.rejects(umbra.command(&["run", "--kernel", "k", "--cmdline"]).arg(not_text), 2, &["UTF-8"])
}

fn values() -> anyhow::Result<()> {
    let umbra = Umbra::new()?;
    let cases: [(&str, &str, &[&str]); 25] = [
        ("--memory", "size=1G,colour=red", &["colour", "size", "unmappable"]),
        ("--memory", "1G", &["1G", "key=value"]),
        ("--memory", "", &["key=value"]),
        ("--memory", "size=1G,", &["key=value"]),
        ("--memory", "size=1G,size=2G", &["size", "twice"]),
        ("--memory", "size=", &["size", "K, M, G or T"]),
        ("--memory", "size=much", &["much", "K, M, G or T"]),
        ("--memory", "size=-1", &["-1", "K, M, G or T"]),
        ("--memory", "size=16E", &["16E", "K, M, G or T"]),
        ("--memory", "size=16777216T", &["16777216T", "larger than the address space"]),
        ("--memory", "size=18446744073709551616", &["18446744073709551616"]),
        ("--memory", "unmappable=perhaps", &["perhaps", "on", "off"]),
        ("--cpus", "boot=0", &["boot=0", "1 to 255 processors"]),
        ("--cpus", "boot=256", &["boot=256", "1 to 255 processors"]),
        ("--cpus", "boot=many", &["many"]),
        ("--cpus", "sockets=1", &["sockets", "boot", "max"]),
        ("--cpus", "boot=2,max=4", &["max", "no processors are added later"]),
        ("--memory", "size=1G,hotplug_size=1G", &["hotplug_size", "memory does not grow"]),
        ("--memory", "size=1G,unmapable=on", &["unmapable", "did you mean", "unmappable"]),
        ("--serial", "pty", &["pty", "tty", "null", "file=PATH"]),
        ("--serial", "file=", &["file=", "file=PATH"]),
        ("--platform", "isolation=magic", &["magic", "none", "software", "auto"]),
        ("--platform", "software", &["software", "key=value"]),
        ("--event-monitor", "path=", &["path"]),
        ("--event-monitor", "file=x", &["file", "path"]),
    ];
    for (option, value, words) in cases {
        let mut words = words.to_vec();
        words.push(option);
        umbra.rejects(&mut umbra.command(&["run", "--kernel", "k", option, value]), 2, &words)?;
    }
    Ok(())
}

fn help() -> anyhow::Result<()> {
    let umbra = Umbra::new()?;
    let cases: [(&[&str], &str); 4] = [
        (&["--help"], "Usage:"),
        (&["run", "--help"], "--kernel"),
        (&["check", "--help"], "--json"),
        (&["--version"], "umbra "),
    ];
    for (arguments, word) in cases {
        let finished = umbra.finish(&mut umbra.command(arguments))?;
        ensure!(finished.status.success() && finished.stdout.contains(word), "{arguments:?}: {finished:?}");
        ensure!(finished.stderr.is_empty(), "{arguments:?}: {finished:?}");
    }
    Ok(())
}
