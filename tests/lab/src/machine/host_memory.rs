//! How much memory this machine can give to a nested host.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What a nested host has when there is enough.
const WANTED: u64 = 6144;
/// Below this, a guest of 512 MiB, its VMM and the nested kernel do not fit.
const LEAST: u64 = 2048;
/// What stays for this machine.
const SPARED: u64 = 512;

/// The memory of a nested host, in MiB.
pub fn for_nested_host() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = available(&meminfo).context("/proc/meminfo does not tell MemAvailable")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    share(group_limit(&groups).map_or(available, |limit| limit.min(available)))
}

fn share(available: u64) -> Result<u64> {
    let memory = available.saturating_sub(SPARED).min(WANTED);
    ensure!(
        memory >= LEAST,
        "the nested host needs {} MiB of free memory, and this machine has {available} MiB: end other programs, or use a \
         larger machine",
        LEAST + SPARED
    );
    Ok(memory)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

/// The smallest memory limit of the control groups that this process is in, in MiB.
fn group_limit(groups: &str) -> Option<u64> {
    let mut smallest: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // In a container, the group's path may be one that is seen outside only: then its root is what holds.
        for ancestor in Path::new(group.trim_start_matches('/')).ancestors() {
            let limit = fs::read_to_string(Path::new(root).join(ancestor).join(file)).unwrap_or_default();
            if let Ok(bytes) = limit.trim().parse::<u64>() {
                let mib = bytes >> 20;
                smallest = Some(smallest.map_or(mib, |smallest| smallest.min(mib)));
            }
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24586232 kB\nMemFree:  22901328 kB\nMemAvailable:   23524680 kB\n";
        assert_eq!(available(text), Some(22973));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_large_machine_gives_what_is_wanted_and_a_smaller_one_less() {
        assert_eq!(share(24_000).unwrap(), WANTED);
        assert_eq!(share(4_000).unwrap(), 3_488);
        assert_eq!(share(LEAST + SPARED).unwrap(), LEAST);
    }

    #[test]
    fn a_small_machine_is_told_what_is_needed() {
        let message = share(1_000).unwrap_err().to_string();
        assert!(message.contains("needs 2560 MiB") && message.contains("has 1000 MiB"), "{message}");
    }

    #[test]
    fn no_groups_mean_no_limit() {
        assert_eq!(group_limit(""), None);
        assert_eq!(group_limit("nonsense\n3:cpu:/x\n"), None);
    }
}
