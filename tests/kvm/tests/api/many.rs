//! One process, many machines: nothing is left behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::Test;
use crate::bed::Bed;

pub const TESTS: &[Test] = &[("a_hundred_machines_leave_nothing_behind", hundred)];

/// Descriptors by what they are, and how many threads there are.
type Holdings = (BTreeMap<String, u32>, usize);

fn holdings(bed: &Bed) -> anyhow::Result<Holdings> {
    let process = format!("/proc/{}", bed.umbra.pid());
    let mut descriptors = BTreeMap::new();
    for entry in std::fs::read_dir(format!("{process}/fd"))? {
        // One may be closed meanwhile.
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        // Numbers of sockets and pipes say nothing.
        let kind = target.to_string_lossy().split('[').next().unwrap_or_default().to_owned();
        *descriptors.entry(kind).or_default() += 1;
    }
    Ok((descriptors, std::fs::read_dir(format!("{process}/task"))?.count()))
}

fn resident(bed: &Bed) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", bed.umbra.pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

fn hundred() -> anyhow::Result<()> {
    let bed = Bed::new(&[])?;
    let cycle = || {
        bed.does("vm.create", Some(bed.config()))?;
        bed.does("vm.boot", None)?;
        bed.does("vm.delete", None).map(drop)
    };
    // What is made once is made.
    for _ in 0..5 {
        cycle()?;
    }
    let (before, memory) = (settled(&bed, None)?, resident(&bed)?);
    for _ in 0..95 {
        cycle()?;
    }
    let after = settled(&bed, Some(&before))?;
    ensure!(after == before, "held before: {before:?}, after: {after:?}");
    let grown = resident(&bed)?.saturating_sub(memory);
    ensure!(grown < 4 << 20, "memory has grown by {grown} bytes");
    let files: Vec<_> =
        std::fs::read_dir(bed.folder.path())?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
    ensure!(files.len() == 3, "kernel, serial and socket are there, and nothing else: {files:?}");
    bed.ends()
}

/// What is held once threads that wait for requests have gone: when it is as expected, or stays the same for long.
fn settled(bed: &Bed, expected: Option<&Holdings>) -> anyhow::Result<Holdings> {
    let mut last = holdings(bed)?;
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_secs(5) && expected != Some(&last) {
        bed.waits("rest")?;
        let now = holdings(bed)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}
