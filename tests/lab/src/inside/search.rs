//! Looks for a guest's canary in another process: `lab inside search --pid PID --seed SEED`.
//!
//! The program works out the canary, the SHA-256 of the seed as hexadecimal text, and counts it in every mapping of the
//! process ([`mappings`]) and in each file behind its descriptors ([`descriptors`]), mapped or not. What is reachable in
//! two ways counts twice. The seed itself is counted too: the VMM has it in its arguments, so a search that does not
//! find the seed has not worked.
//!
//! Nothing is left out in silence: the findings name each part of a mapping that cannot be read, each guest_memfd
//! that refused both to be read and to be mapped, and each descriptor that is not a file. Holes of sparse files and
//! pages that the process never touched are zeros, and are not read, so that the search adds no memory to the process
//! beyond page tables. The process runs on meanwhile; a page that it moves during the search may be missed or counted
//! twice, so search a VMM whose guest is idle.

pub mod descriptors;
pub mod extents;
pub mod mappings;
pub mod opaque;
pub mod scanner;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use descriptors::{Access, Descriptors, OpenFile, plain};
use extents::Extents;
use mappings::{Backing, Mapping, Memory};
use scanner::{Refused, Scanner};

/// Options of `lab inside search`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The process to search
    #[arg(long)]
    pid: u32,
    /// The seed of which the guest made its canary
    #[arg(long)]
    seed: String,
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// How often the canary was found.
    pub canary_hits: u64,
    /// How often the seed was found.
    pub seed_hits: u64,
    /// How many bytes were searched.
    pub bytes: u64,
    /// How many mappings were looked at.
    pub mappings: u64,
    /// How many files were looked at.
    pub files: u64,
    /// Files that can be neither read nor mapped, with the errors: the guest_memfds.
    pub refused_files: Vec<String>,
    /// Where something was found.
    pub places: Vec<Place>,
    /// What cannot be read, and why.
    pub unread: Vec<String>,
    /// Descriptors that are not files.
    pub streams: Vec<String>,
}

/// A mapping or a file in which something was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// How often the canary was found here.
    pub canary_hits: u64,
    /// How often the seed was found here.
    pub seed_hits: u64,
}

/// Searches, and writes the [`Findings`] as JSON to standard output.
pub fn run(args: &Args) -> Result<()> {
    let findings = search(args.pid, canary(&args.seed).as_bytes(), args.seed.as_bytes())?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &findings).context("cannot write the findings")?;
    out.flush().context("cannot write the findings")
}

/// What the guest fills its memory with.
pub fn canary(seed: &str) -> String {
    Sha256::digest(seed.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts `canary` and `seed` in the memory and the files of process `pid`.
pub fn search(pid: u32, canary: &[u8], seed: &[u8]) -> Result<Findings> {
    if canary.is_empty() || seed.is_empty() {
        bail!("an empty string can't be searched for");
    }
    let memory = Memory::open(pid)?;
    let descriptors = Descriptors::of(pid)?;
    let mut search = Search { scanner: Scanner::new(&[canary, seed]), findings: Findings::default() };
    let mappings = memory.mappings()?;
    if mappings.is_empty() {
        bail!("process {pid} has no memory: it has ended");
    }
    for mapping in &mappings {
        let backing = backing(mapping, &memory, &descriptors)?;
        search.place(mapping.describe(), |scanner| memory.search(mapping, &backing, scanner))?;
        search.findings.mappings += 1;
    }
    for file in &descriptors.files {
        search.file(file)?;
        search.findings.files += 1;
    }
    if memory.mappings().map_or(true, |mappings| mappings.is_empty()) {
        bail!("process {pid} ended while it was searched");
    }
    search.findings.streams = descriptors.streams;
    search.findings.bytes = search.scanner.bytes();
    Ok(search.findings)
}

/// Finds out what stands behind `mapping`.
fn backing(mapping: &Mapping, memory: &Memory, descriptors: &Descriptors) -> Result<Backing> {
    if mapping.is_anonymous() {
        return Ok(Backing::Zeros);
    }
    let extents = |file: &File| Extents::of(file).with_context(|| format!("cannot find the holes of {}", mapping.name));
    let known = match memory.file_behind(mapping) {
        Ok(file) => extents(&file)?,
        // The kernel lets only root look behind a mapping; a descriptor of the same file does as well.
        Err(_) => match descriptors.files.iter().find(|file| file.identity == mapping.file) {
            Some(OpenFile { access: Access::Own(file), .. }) => extents(file)?,
            _ => None,
        },
    };
    Ok(known.map_or(Backing::Unknown, Backing::Data))
}

struct Search {
    scanner: Scanner,
    findings: Findings,
}

impl Search {
    /// Searches one place and records what was found there and what was not readable.
    fn place(&mut self, name: String, read: impl FnOnce(&mut Scanner) -> Result<Option<Refused>>) -> Result<()> {
        let before = self.scanner.hits();
        if let Some(refused) = read(&mut self.scanner)? {
            self.findings.unread.push(format!("{name}: {} bytes, {}", refused.bytes, plain(&refused.error)));
        }
        let after = self.scanner.hits();
        let [canary_hits, seed_hits] = [after[0] - before[0], after[1] - before[1]];
        self.findings.canary_hits += canary_hits;
        self.findings.seed_hits += seed_hits;
        if canary_hits + seed_hits > 0 {
            self.findings.places.push(Place { name, canary_hits, seed_hits });
        }
        Ok(())
    }

    fn file(&mut self, file: &OpenFile) -> Result<()> {
        self.scanner.start_anew();
        let name = file.name.clone();
        match &file.access {
            Access::Own(own) => {
                let extents = Extents::of(own).with_context(|| format!("cannot find the holes of {name}"))?;
                let ranges = match &extents {
                    Some(extents) => extents.iter().map(|extent| (extent.start, extent.end - extent.start)).collect(),
                    None => vec![(0, file.size)],
                };
                self.place(name, |scanner| {
                    let mut refused = None;
                    for (start, length) in ranges {
                        Refused::add(&mut refused, scanner.search(own, start, length));
                    }
                    Ok(refused)
                })?;
            }
            Access::Borrowed(borrowed) => {
                self.place(name, |scanner| Ok(scanner.search(borrowed, 0, file.size)))?;
            }
            Access::MappableOnly(mapped) => {
                self.place(name, |scanner| Ok(scanner.search(mapped, 0, mapped.length())))?;
            }
            Access::Refused(errors) => self.findings.refused_files.push(format!("{name}: {errors}")),
        }
        Ok(())
    }
}
