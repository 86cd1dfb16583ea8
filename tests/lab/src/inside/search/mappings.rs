//! The mappings of another process, and their contents as that process would read them.
//!
//! Contents come from `/proc/PID/mem`, which reads pages whatever their protection is. A page is read if the process
//! has it (`/proc/PID/pagemap`) or the file behind the mapping has data there ([`Extents`]); any other page of anonymous
//! memory or of a sparse file is zeros, and reading it would only make the process grow.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::extents::Extents;
use super::scanner::{Refused, Scanner};

const PAGE: u64 = 4096;
/// Address space looked at in one step.
const WINDOW: u64 = 1 << 20;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The addresses.
    pub addresses: Range<u64>,
    /// Where in the file the mapping starts.
    pub offset: u64,
    /// The file: device (major, minor) and inode; inode 0 is no file.
    pub file: ((u32, u32), u64),
    /// Path or name.
    pub name: String,
    /// `rw-p` and the like.
    permissions: String,
}

/// What stands behind the pages of a mapping that the process itself does not have.
#[derive(Debug)]
pub enum Backing {
    /// Nothing: they read as zeros.
    Zeros,
    /// A file with data in these parts.
    Data(Extents),
    /// Unknown: each page must be read.
    Unknown,
}

impl Mapping {
    /// Whether this is memory without a file. The kernel's own mappings (`[vdso]` and others) are not.
    pub fn is_anonymous(&self) -> bool {
        let kernels_own = self.name.starts_with('[')
            && !["[heap]", "[stack]"].contains(&self.name.as_str())
            && !self.name.starts_with("[anon:");
        self.file.1 == 0 && !kernels_own
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = fields.next()?.split_once('-')?;
        let addresses = hexadecimal(start)?..hexadecimal(end)?;
        let permissions = fields.next()?.to_owned();
        let offset = hexadecimal(fields.next()?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let inode = fields.next()?.parse().ok()?;
        let name = fields.next().unwrap_or_default().trim_start().to_owned();
        Some(Self { addresses, offset, file: (device, inode), name, permissions })
    }

    /// Name and place, for people.
    pub fn describe(&self) -> String {
        let name = if self.name.is_empty() { "anonymous" } else { &self.name };
        format!("{name} {:x}-{:x} {}", self.addresses.start, self.addresses.end, self.permissions)
    }
}

/// The memory of one process.
pub struct Memory {
    mem: File,
    pagemap: File,
    directory: String,
}

impl Memory {
    /// Opens the memory of process `pid`, which needs the right to debug it.
    pub fn open(pid: u32) -> Result<Self> {
        let directory = format!("/proc/{pid}");
        let open = |name: &str| {
            let path = format!("{directory}/{name}");
            File::open(&path).with_context(|| format!("cannot open {path}"))
        };
        let pagemap = open("pagemap").context("(the kernel needs CONFIG_PROC_PAGE_MONITOR)")?;
        Ok(Self { mem: open("mem")?, pagemap, directory })
    }

    /// All mappings of the process.
    pub fn mappings(&self) -> Result<Vec<Mapping>> {
        let path = format!("{}/maps", self.directory);
        let lines = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        lines
            .lines()
            .map(|line| Mapping::parse(line).with_context(|| format!("unexpected line in {path}: {line}")))
            .collect()
    }

    /// The file behind `mapping`, as an open file description of our own.
    ///
    /// An error if it is not a regular file: to open a device is no harmless thing.
    pub fn file_behind(&self, mapping: &Mapping) -> io::Result<File> {
        let Range { start, end } = mapping.addresses;
        let path = format!("{}/map_files/{start:x}-{end:x}", self.directory);
        if !std::fs::metadata(&path)?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        File::open(path)
    }

    /// Searches one mapping; returns what cannot be read of it.
    pub fn search(&self, mapping: &Mapping, backing: &Backing, scanner: &mut Scanner) -> Result<Option<Refused>> {
        let mut refused: Option<Refused> = None;
        let Range { start, end } = mapping.addresses;
        if let Backing::Unknown = backing {
            return Ok(scanner.search(&self.mem, start, end - start));
        }
        let mut window = start;
        while window < end {
            let window_end = end.min(window.saturating_add(WINDOW));
            let present = self.present(window..window_end)?;
            let holds = |page: u64| {
                let offset = mapping.offset.saturating_add(page - start);
                let in_file = match backing {
                    Backing::Data(extents) => extents.touch(&(offset..offset.saturating_add(PAGE))),
                    Backing::Zeros | Backing::Unknown => false,
                };
                in_file || present[((page - window) / PAGE) as usize]
            };
            let mut page = window;
            while page < window_end {
                let run = page;
                while page < window_end && holds(page) {
                    page += PAGE;
                }
                Refused::add(&mut refused, scanner.search(&self.mem, run, page - run));
                page = if page == run { page + PAGE } else { page };
            }
            window = window_end;
        }
        Ok(refused)
    }

    /// For each page, whether the process has it, in memory or in swap.
    fn present(&self, addresses: Range<u64>) -> Result<Vec<bool>> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        let pages = (addresses.end - addresses.start) / PAGE;
        let mut entries = vec![0; pages as usize * 8];
        self.pagemap
            .read_exact_at(&mut entries, addresses.start / PAGE * 8)
            .with_context(|| format!("cannot read {}/pagemap at {:x}", self.directory, addresses.start))?;
        let (entries, _) = entries.as_chunks();
        Ok(entries.iter().map(|entry| u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_are_understood() {
        let line =
            "7f12c0000000-7f12c4000000 rw-s 00002000 00:1f 1042                       /memfd:guest ram (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.addresses, 0x7f12_c000_0000..0x7f12_c400_0000);
        assert_eq!((mapping.offset, mapping.file), (0x2000, ((0, 0x1f), 1042)));
        assert_eq!(mapping.name, "/memfd:guest ram (deleted)");
        assert_eq!(mapping.describe(), "/memfd:guest ram (deleted) 7f12c0000000-7f12c4000000 rw-s");
        assert!(!mapping.is_anonymous());
        assert_eq!(Mapping::parse("nonsense"), None);
        assert_eq!(Mapping::parse(""), None);
    }

    #[test]
    fn kernel_mappings_are_not_taken_for_zeros() {
        for (name, anonymous) in [
            ("", true),
            ("[heap]", true),
            ("[stack]", true),
            ("[anon:arena]", true),
            ("[vdso]", false),
            ("[vvar]", false),
        ] {
            let mapping = Mapping::parse(&format!("1000-2000 r--p 00000000 00:00 0    {name}")).unwrap();
            assert_eq!(mapping.is_anonymous(), anonymous, "{name}");
        }
        assert!(!Mapping::parse("1000-2000 rw-s 00000000 00:01 7 /dev/zero (deleted)").unwrap().is_anonymous());
    }
}
