//! Newer versions of packages than this machine's release of Debian has: from that release's backports, unpacked into the
//! cache and not installed.
//!
//! apt keeps lists of what servers have, and those of the system are left alone: the lab has lists of the backports alone in
//! the cache, which apt checks by Debian's keys like its own. They are fetched when a package is, and not looked at again
//! until its entry in the cache is gone.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::apt::{Candidate, LEFT_OUT, download_once, remembered, unpack};
use super::mirror::{Mirror, known_debian_mirror};
use super::{listing, run};
use crate::cache::{Cache, Found};
use crate::options::Options;
use crate::process::Family;

/// Debian's keys, of the package that each Debian system has.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The unpacked files of packages, one beside the other, in the cache: without documentation. The entry is named by the
/// first of them.
///
/// Nothing if apt's sources have no Debian.
///
/// # Errors
/// No such package in its backports, no network.
pub fn fetch_backports(options: &Options, cache: &Cache, names: &[&str]) -> Result<Option<PathBuf>> {
    let first = names.first().context("no package is named")?;
    let cached = || match cache.find(entry_name(&last(cache, first)?)) {
        Found::Entry(folder) => Some(folder),
        Found::Nothing => None,
        Found::Broken(reason) => {
            eprintln!("lab: the cached package {first} is broken ({reason}); getting it again");
            None
        }
    };
    if let Some(folder) = cached() {
        return Ok(Some(folder));
    }
    let Some(mirror) = known_debian_mirror()? else { return Ok(None) };
    let lock = cache.lock("packages", "fetches a package")?;
    if let Some(folder) = cached() {
        return Ok(Some(folder));
    }
    let work = cache.work_folder(&lock, "packages")?;
    let lists = Lists::fetch(&mirror, work.path())?;
    let folder = work.path().join("unpacked");
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let wanted = names.iter().map(|name| lists.candidate(name)).collect::<Result<Vec<_>>>()?;
    let size = wanted.iter().map(|package| package.size).sum::<u64>();
    cache.require_space(size.saturating_mul(5), &format!("unpacking {first}"))?;
    for package in &wanted {
        let place = work.path().join(&package.name);
        fs::create_dir(&place).with_context(|| format!("cannot create {}", place.display()))?;
        unpack(&download_once(options, &lists.settings, package, &place)?, &folder, &LEFT_OUT)?;
    }
    let entry = cache.publish(&lock, &folder, entry_name(&wanted[0]))?;
    let note = note(cache, first);
    fs::create_dir_all(cache.path("versions"))
        .and_then(|()| fs::write(&note, format!("{} {}\n", wanted[0].version, wanted[0].size)))
        .with_context(|| format!("cannot write {}", note.display()))?;
    Ok(Some(entry))
}

/// Whether [`fetch_backports`] would find its packages in the cache, of which this is the first.
pub fn has_backports(cache: &Cache, first: &str) -> bool {
    last(cache, first).is_some_and(|package| matches!(cache.find(entry_name(&package)), Found::Entry(_)))
}

fn note(cache: &Cache, first: &str) -> PathBuf {
    cache.path("versions").join(format!("{first}~backports"))
}

/// What was fetched last.
fn last(cache: &Cache, first: &str) -> Option<Candidate> {
    remembered(first, &note(cache, first))
}

fn entry_name(package: &Candidate) -> PathBuf {
    Path::new("packages").join(format!("{}+others_{}", package.name, package.version))
}

/// apt's lists of the backports alone.
struct Lists {
    /// What makes apt use them.
    settings: Vec<String>,
    /// What they are lists of.
    of: String,
}

impl Lists {
    fn fetch(mirror: &Mirror, folder: &Path) -> Result<Self> {
        let of = format!("{}-backports", mirror.suite);
        let lists = Self { settings: settings(folder)?, of };
        let signed = if Path::new(KEYS).exists() { format!("[signed-by={KEYS}] ") } else { String::new() };
        let source = format!("deb {signed}{} {} main\n", mirror.server, lists.of);
        let context = || format!("cannot get the list of packages of {}", lists.of);
        for place in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(place)).with_context(context)?;
        }
        fs::write(folder.join("sources.list"), source).with_context(context)?;
        let mut command = Command::new("apt-get");
        command.args(&lists.settings).args(["-q", "update"]).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut apt = Family::start(&mut command, Vec::new()).context("cannot run apt-get").with_context(context)?;
        let mut said = String::new();
        if let Some(mut stderr) = apt.child().stderr.take() {
            stderr.read_to_string(&mut said).with_context(context)?;
        }
        let status = apt.wait().with_context(context)?;
        // apt-get ends well without lists, too.
        ensure!(status.success() && !said.contains("Failed to fetch"), "{}: {}", context(), listing::complaint(&said));
        Ok(lists)
    }

    fn candidate(&self, name: &str) -> Result<Candidate> {
        let arguments = self.settings.iter().map(String::as_str).chain(["show", "--no-all-versions", name]);
        let output = run("apt-cache", arguments)?;
        let found = listing::stanzas(&String::from_utf8_lossy(&output.stdout)).into_iter().next();
        let found = found.with_context(|| format!("{} has no package {name}", self.of))?;
        Ok(Candidate { name: name.to_owned(), version: found.version, size: found.size })
    }
}

/// apt's options for a state of its own, in which nothing is installed.
fn settings(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.to_str().context("the path of the lab's cache is not UTF-8, which apt needs")?;
    let mut settings = Vec::new();
    for (name, value) in [
        ("Dir::Etc::SourceList", format!("{folder}/sources.list")),
        ("Dir::Etc::SourceParts", "-".to_owned()),
        ("Dir::State::Lists", format!("{folder}/lists")),
        ("Dir::State::Status", "/dev/null".to_owned()),
        ("Dir::Cache", folder.to_owned()),
        // The cache is not open to the user _apt.
        ("APT::Sandbox::User", "root".to_owned()),
    ] {
        settings.extend(["-o".to_owned(), format!("{name}={value}")]);
    }
    Ok(settings)
}
