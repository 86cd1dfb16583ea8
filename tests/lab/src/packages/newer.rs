//! Newer versions of programs than this machine's release of Debian has: from the backports of [`RELEASE`], with all libraries
//! down to the C library, unpacked into the cache and not installed.
//!
//! apt keeps lists of what servers have, and those of the system are left alone: the lab makes lists of that release alone,
//! which apt checks by Debian's keys like its own, and has apt find what the program needs on a system that has nothing.
//! They are fetched when a program is, and not looked at again until its entry in the cache is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::apt::{Candidate, LEFT_OUT, remembered, run_watched, size_of_files, unpack};
use super::mirror::{Mirror, known_debian_mirror};
use super::{listing, run};
use crate::cache::{Cache, Found};
use crate::options::Options;
use crate::progress::Progress;

/// The release. It has to be one whose C library runs on the kernels of older ones, as all do.
const RELEASE: &str = "trixie";
/// Debian's keys, of the package that each Debian system has.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where its libraries are, and among them what loads a program with them.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";
/// What no program of the lab needs, next to [`LEFT_OUT`].
const NEVER_USED: [&str; 5] =
    ["./etc", "./var", "./usr/sbin", "./usr/share/locale", "./usr/lib/x86_64-linux-gnu/gconv"];

/// A folder like the root of a system, with one program and all that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Starts to describe a run of one of its programs, with its own libraries.
    pub fn command(&self, program: &str) -> Command {
        let libraries = self.0.join(LIBRARIES);
        let mut command = Command::new(libraries.join(LOADER));
        command.arg("--library-path").arg(libraries).arg(self.path("usr/bin").join(program));
        command
    }

    /// A path in it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

/// The program of the package `name` in the backports of [`RELEASE`], or in the release itself if these have none, if it is not
/// older than `oldest`. Paths that begin like one of `left_out` are left out.
///
/// Nothing if apt's lists have no Debian.
///
/// # Errors
/// No such package, one that is older, no network.
pub fn fetch_newer(
    options: &Options,
    cache: &Cache,
    name: &str,
    oldest: (u32, u32),
    left_out: &[&str],
) -> Result<Option<Root>> {
    let find = || last(cache, name).map_or(Found::Nothing, |package| cache.find(entry_name(&package)));
    match find() {
        Found::Entry(folder) => return Ok(Some(Root(folder))),
        Found::Nothing => {}
        Found::Broken(reason) => eprintln!("lab: the cached package {name} is broken ({reason}); getting it again"),
    }
    let Some(mirror) = known_debian_mirror()? else { return Ok(None) };
    let lock = cache.lock("packages", "fetches a package")?;
    if let Found::Entry(folder) = find() {
        return Ok(Some(Root(folder)));
    }
    let work = cache.work_folder(&lock, "packages")?;
    let apt = Apt::prepare(&mirror, work.path())?;
    let (wanted, count) = apt.candidate(name)?;
    let has = listing::upstream(&wanted.version);
    ensure!(has >= Some(oldest), "Debian {RELEASE} and its backports have {name} {} only", wanted.version);
    cache.require_space(wanted.size.saturating_mul(6), &format!("unpacking {name} and its libraries"))?;
    let archives = apt.download(options, &wanted)?;
    ensure!(archives.len() == count, "apt-get left {} of {count} packages for {name}", archives.len());
    let folder = work.path().join("unpacked");
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let left_out: Vec<&str> = LEFT_OUT.iter().chain(&NEVER_USED).chain(left_out).copied().collect();
    for archive in &archives {
        unpack(archive, &folder, &left_out)?;
    }
    let entry = cache.publish(&lock, &folder, entry_name(&wanted))?;
    let note = note(cache, name);
    fs::create_dir_all(cache.path("versions"))
        .and_then(|()| fs::write(&note, format!("{} {}\n", wanted.version, wanted.size)))
        .with_context(|| format!("cannot write {}", note.display()))?;
    Ok(Some(Root(entry)))
}

/// Whether [`fetch_newer`] would find it in the cache.
pub fn has_newer(cache: &Cache, name: &str) -> bool {
    last(cache, name).is_some_and(|package| matches!(cache.find(entry_name(&package)), Found::Entry(_)))
}

fn note(cache: &Cache, name: &str) -> PathBuf {
    cache.path("versions").join(format!("{name}~{RELEASE}"))
}

/// What was fetched last.
fn last(cache: &Cache, name: &str) -> Option<Candidate> {
    remembered(name, &note(cache, name))
}

fn entry_name(package: &Candidate) -> PathBuf {
    // The loader takes a colon for the end of a path.
    Path::new("packages").join(format!("{}+libraries_{}", package.name, package.version.replace(':', "%3a")))
}

/// An apt that knows that release alone, and for which nothing is installed.
struct Apt<'a> {
    folder: &'a Path,
    settings: Vec<String>,
}

impl<'a> Apt<'a> {
    /// Fetches its lists into `folder`.
    fn prepare(mirror: &Mirror, folder: &'a Path) -> Result<Self> {
        let apt = Self { folder, settings: settings(folder)? };
        let context = || format!("cannot get the lists of packages of {RELEASE} and its backports");
        for place in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(place)).with_context(context)?;
        }
        fs::write(folder.join("sources.list"), sources(mirror)).with_context(context)?;
        let said = apt.run(&["update"], || ()).with_context(context)?;
        // apt-get ends well without lists, too.
        ensure!(!said.contains("Failed to fetch"), "{}: {}", context(), listing::complaint(&said));
        Ok(apt)
    }

    /// The version that it would install, with the size of that and all that it needs, and how many packages these are.
    fn candidate(&self, name: &str) -> Result<(Candidate, usize)> {
        let settings = self.settings.iter().map(String::as_str);
        let output = run("apt-get", settings.chain(INSTALL).chain(["--print-uris", name]))?;
        let complaint = || listing::complaint(&String::from_utf8_lossy(&output.stderr)).to_owned();
        ensure!(output.status.success(), "cannot find what {name} needs: {}", complaint());
        let files = listing::files(&String::from_utf8_lossy(&output.stdout));
        let Some(version) = files.iter().find_map(|file| file.version_of(name)) else {
            bail!("apt-get does not tell where {name} is")
        };
        let size = files.iter().map(|file| file.size).sum();
        Ok((Candidate { name: name.to_owned(), version, size }, files.len()))
    }

    /// Downloads it and all that it needs; returns the archives.
    fn download(&self, options: &Options, package: &Candidate) -> Result<Vec<PathBuf>> {
        let Candidate { name, version, size } = package;
        let archives = self.folder.join("archives");
        let megabytes = *size as f64 / 1e6;
        let title = format!("downloading {name} {version} with all its libraries ({megabytes:.1} MB)");
        let mut progress = Progress::start(title, *size);
        let arguments: Vec<&str> = INSTALL.into_iter().chain(["--download-only", name]).collect();
        let watched = || progress.update(size_of_files(&archives) + size_of_files(&archives.join("partial")));
        let said = self.run(&arguments, watched).with_context(|| format!("cannot download {name} {version}"))?;
        if options.verbose && !said.trim().is_empty() {
            eprintln!("{}", said.trim());
        }
        progress.finish("done");
        let context = || format!("cannot read {}", archives.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&archives).with_context(context)? {
            let path = entry.with_context(context)?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Runs apt-get, with `watch` called now and then, and returns what it complained about.
    fn run(&self, arguments: &[&str], watch: impl FnMut()) -> Result<String> {
        let mut command = Command::new("apt-get");
        command.args(&self.settings).args(arguments).env("LC_ALL", "C").stdout(Stdio::null());
        run_watched(&mut command, watch)
    }
}

/// How apt-get is asked for a package with all that it needs, and no more.
const INSTALL: [&str; 4] = ["-qq", "-y", "--no-install-recommends", "install"];

/// Where apt finds the release and its backports.
fn sources(mirror: &Mirror) -> String {
    let signed = if Path::new(KEYS).exists() { format!("[signed-by={KEYS}] ") } else { String::new() };
    let server = &mirror.server;
    format!("deb {signed}{server} {RELEASE} main\ndeb {signed}{server} {RELEASE}-backports main\n")
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
        // The system's own rules on versions are not meant for this.
        ("Dir::Etc::Preferences", "-".to_owned()),
        ("Dir::Etc::PreferencesParts", "-".to_owned()),
        ("APT::Default-Release", format!("{RELEASE}-backports")),
        ("APT::Architecture", "amd64".to_owned()),
        // The cache is not open to the user _apt.
        ("APT::Sandbox::User", "root".to_owned()),
        // What is only downloaded needs no right to install.
        ("Debug::NoLocking", "1".to_owned()),
    ] {
        settings.extend(["-o".to_owned(), format!("{name}={value}")]);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_with_the_libraries_beside_it() {
        let command = Root(PathBuf::from("/c")).command("q");
        assert_eq!(command.get_program(), "/c/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["--library-path", "/c/usr/lib/x86_64-linux-gnu", "/c/usr/bin/q"]);
    }

    #[test]
    fn apt_sees_the_release_and_its_backports_alone() {
        let mirror = Mirror { server: "http://mirror.test/debian".into(), suite: "bookworm".into() };
        let sources = sources(&mirror);
        let suites: Vec<&str> = sources.lines().filter_map(|line| line.split(' ').rev().nth(1)).collect();
        assert_eq!(suites, ["trixie", "trixie-backports"]);
        let settings = settings(Path::new("/c")).unwrap();
        assert!(settings.contains(&"Dir::Etc::SourceList=/c/sources.list".to_owned()));
        assert!(settings.contains(&"Dir::State::Status=/dev/null".to_owned()));
    }
}
