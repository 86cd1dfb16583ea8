//! How much memory a VMM takes for itself.
//!
//! That is the sum of `Pss` over its mappings in `/proc/PID/smaps`, without the guest's RAM: a file of that name, or
//! anonymous memory that is kept out of core dumps, as umbra keeps guest RAM and nothing else. A page that several processes
//! share counts for each in part. Pages of a guest_memfd are mapped nowhere and so count nowhere, nor does what the kernel
//! keeps for the process.

use anyhow::{Context, Result};

/// What the name of a mapping of guest RAM begins with.
const GUEST_RAM: &str = "/memfd:guest";
/// What the kernel calls memory that is kept out of core dumps.
const NOT_IN_CORE_DUMPS: &str = "dd";

/// Bytes of memory of process `pid` that are not guest RAM.
pub fn own_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path} (the kernel needs CONFIG_PROC_PAGE_MONITOR)"))?;
    sum(&text).with_context(|| format!("{path} is not as expected"))
}

fn sum(smaps: &str) -> Result<u64> {
    let mut kibibytes: u64 = 0;
    let mut mapping: Option<Mapping> = None;
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        if !first.ends_with(':') {
            // Permissions, offset, device and inode stand before the name.
            let mut fields = rest.splitn(5, ' ');
            let anonymous = fields.nth(3) == Some("0");
            let named = fields.next().unwrap_or_default().trim_start().starts_with(GUEST_RAM);
            mapping = Some(Mapping { anonymous, named, size: 0 });
            continue;
        }
        let mapping = mapping.as_mut().context("sizes come before the first mapping")?;
        if first == "Pss:" {
            let size = rest.trim().strip_suffix(" kB").with_context(|| format!("line {line:?}"))?;
            mapping.size = size.trim().parse().with_context(|| format!("line {line:?}"))?;
        } else if first == "VmFlags:" {
            // The last line of each.
            let undumped = rest.split_whitespace().any(|flag| flag == NOT_IN_CORE_DUMPS);
            let is_guest_ram = mapping.named || (mapping.anonymous && undumped);
            if !is_guest_ram {
                kibibytes = kibibytes.saturating_add(mapping.size);
            }
        }
    }
    mapping.context("the process has no mappings")?;
    Ok(kibibytes.saturating_mul(1024))
}

/// A mapping whose lines are being read.
struct Mapping {
    anonymous: bool,
    /// It has the name of guest RAM.
    named: bool,
    /// Its `Pss` in kibibytes.
    size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d71e202000-55d71e204000 r--p 00000000 00:15 494567                     /usr/bin/umbra
Size:                  8 kB
Rss:                   8 kB
Pss:                   6 kB
Pss_Dirty:             1 kB
VmFlags: rd mr mw me sd
7f12c0000000-7f12e0000000 rw-s 00000000 00:01 1042                       /memfd:guest-ram (deleted)
Size:             524288 kB
Rss:              131072 kB
Pss:              131072 kB
VmFlags: rd wr sh mr mw me ms sd
7f12f0000000-7f12f0021000 rw-p 00000000 00:00 0\u{20}
Pss:                 100 kB
VmFlags: rd wr mr mw me ac sd
7f1300000000-7f1320000000 rw-p 00000000 00:00 0\u{20}
Pss:               65536 kB
VmFlags: rd wr mr mw me dc ac dd hg sd
7f1330000000-7f1330001000 r--s 00000000 00:15 77                         /usr/share/undumped
Pss:                   4 kB
VmFlags: rd mr mw me dd
";

    #[test]
    fn guest_ram_is_left_out() {
        assert_eq!(sum(SMAPS).unwrap(), 110 * 1024);
    }

    #[test]
    fn unknown_form_is_an_error() {
        assert!(sum("").is_err());
        assert!(sum("Pss: 5 kB\n").is_err());
        assert!(sum(&SMAPS.replace("100 kB", "100 MB")).is_err());
    }

    #[test]
    fn this_process_has_memory() {
        assert!(own_memory(std::process::id()).unwrap() > 100_000);
    }
}
