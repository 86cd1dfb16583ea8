//! How much memory is behind a guest whose RAM is never converted: that is anonymous, and kept out of core dumps, as nothing
//! else of a VMM's is.

use anyhow::{Context, ensure};
use rustix::process::Pid;

/// What the kernel calls memory that is kept out of core dumps.
const NOT_IN_CORE_DUMPS: &str = "dd";

/// Bytes of memory behind the guest of this process that has so many bytes of RAM.
///
/// # Errors
/// A process that has no such guest, or several.
pub fn resident(pid: Pid, ram: u64) -> anyhow::Result<u64> {
    let path = format!("/proc/{}/smaps", pid.as_raw_nonzero());
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    resident_in(&smaps, ram).with_context(|| path)
}

fn resident_in(smaps: &str, ram: u64) -> anyhow::Result<u64> {
    let (mut size, mut resident, mut found) = (0, 0, Vec::new());
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Size", value)) => size = bytes(value)?,
            Some(("Rss", value)) => resident = bytes(value)?,
            // The last line of each mapping.
            Some(("VmFlags", flags)) if size == ram && flags.split_whitespace().any(|it| it == NOT_IN_CORE_DUMPS) => {
                found.push(resident);
            }
            _ => {}
        }
    }
    ensure!(found.len() == 1, "{} mappings look like {ram:#x} bytes of guest RAM, expected one", found.len());
    Ok(found[0])
}

/// A number of kibibytes.
fn bytes(value: &str) -> anyhow::Result<u64> {
    let number = value.trim().strip_suffix(" kB").with_context(|| format!("{value:?} is no size"))?;
    Ok(number.trim().parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f12c0000000-7f12e0000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:                8192 kB
VmFlags: rd wr mr mw me dc ac dd hg sd
7f12f0000000-7f1310000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:                 100 kB
VmFlags: rd wr mr mw me ac sd
7f1320000000-7f1330000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:                   4 kB
VmFlags: rd wr mr mw me dd
";

    #[test]
    fn a_guest_is_known_by_its_size_and_its_flag() {
        assert_eq!(resident_in(SMAPS, 512 << 20).unwrap(), 8 << 20);
        assert_eq!(resident_in(SMAPS, 256 << 20).unwrap(), 4096);
        assert!(resident_in(SMAPS, 128 << 20).is_err());
        assert!(resident_in(&SMAPS.repeat(2), 256 << 20).is_err());
    }

    #[test]
    fn this_process_has_none() {
        assert!(resident(rustix::process::getpid(), 512 << 20).is_err());
    }
}
