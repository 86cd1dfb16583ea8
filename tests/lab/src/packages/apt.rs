//! Looks packages up and downloads them, through apt, which checks their signatures.
//!
//! An answer of `apt-cache` takes half a second, so the version of a package is remembered in the cache until apt's own
//! lists or sources change.

use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::listing::{self, Stanza};
use super::{Administrator, find_command, run};
use crate::cache::{Cache, Found};
use crate::options::Options;
use crate::process::Family;
use crate::progress::Progress;

/// What apt's answers depend on.
const APT_STATE: [&str; 6] = [
    "/var/lib/apt/lists",
    "/etc/apt",
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/etc/apt/preferences",
    "/etc/apt/preferences.d",
];

/// Paths of a package that the lab has no use for. Kernel modules are 90 % of a kernel package.
pub(super) const LEFT_OUT: [&str; 4] = ["./lib/modules", "./usr/lib/modules", "./usr/share/doc", "./usr/share/man"];

/// A version of a package that can be downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The package's name.
    pub name: String,
    /// The version that apt would install.
    pub version: String,
    /// The size of the .deb in bytes.
    pub size: u64,
}

/// The version of `name` that apt would install.
pub fn candidate(options: &Options, cache: &Cache, name: &str) -> Result<Candidate> {
    let note = cache.path("versions").join(name);
    if is_current(&note)
        && let Some(candidate) = remembered(name, &note)
    {
        return Ok(candidate);
    }
    let stanza = match (look_up(options, name), remembered(name, &note)) {
        (Ok(stanza), _) => stanza,
        (Err(error), Some(candidate)) => {
            eprintln!("lab: {error:#}; going on with version {} as last time", candidate.version);
            return Ok(candidate);
        }
        (Err(error), None) => return Err(error),
    };
    let candidate = Candidate { name: name.to_owned(), version: stanza.version, size: stanza.size };
    // Only a shortcut for the next run: without it that one asks apt again.
    let _ = fs::create_dir_all(cache.path("versions"));
    let _ = fs::write(&note, format!("{} {}\n", candidate.version, candidate.size));
    Ok(candidate)
}

/// Whether apt's state is older than a note.
fn is_current(note: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|state| state.modified()).ok();
    let last_change = APT_STATE.iter().filter_map(|path| modified(Path::new(path))).max();
    match (modified(note), last_change) {
        (Some(written), Some(changed)) => written > changed,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

pub(super) fn remembered(name: &str, note: &Path) -> Option<Candidate> {
    let text = fs::read_to_string(note).ok()?;
    let (version, size) = text.trim().split_once(' ')?;
    Some(Candidate { name: name.to_owned(), version: version.to_owned(), size: size.parse().ok()? })
}

/// The newest kernel image that `name` stands for: itself, unless it is a meta-package.
pub fn resolve_meta(options: &Options, name: &str) -> Result<String> {
    let mut name = name.to_owned();
    for _ in 0..4 {
        let stanza = look_up(options, &name)?;
        match listing::image_of_meta(&stanza) {
            Some(image) => name = image.to_owned(),
            None => return Ok(name),
        }
    }
    bail!("package {name} is a meta-package of a meta-package and so on: name the kernel image itself")
}

/// The package with the newest version among those whose name fits `pattern` (`*` stands for any text). Unsigned images,
/// debug symbols and meta-packages do not count.
pub fn newest_matching(options: &Options, pattern: &str) -> Result<String> {
    let find = || -> Result<Option<String>> {
        let prefix = pattern.split('*').next().unwrap_or_default();
        let output = run("apt-cache", ["pkgnames", prefix])?;
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        let names: Vec<&str> =
            names.lines().filter(|name| listing::fits(pattern, name) && !listing::is_variant(name)).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let mut newest: Option<Stanza> = None;
        for stanza in show(&names)? {
            if listing::image_of_meta(&stanza).is_none()
                && newest.as_ref().map_or(Ok(true), |best| is_newer(&stanza.version, &best.version))?
            {
                newest = Some(stanza);
            }
        }
        Ok(newest.map(|stanza| stanza.package))
    };
    find_or_refresh(options, &format!("a package that fits {pattern}"), find)
}

fn is_newer(version: &str, than: &str) -> Result<bool> {
    Ok(run("dpkg", ["--compare-versions", version, "gt", than])?.status.success())
}

fn look_up(options: &Options, name: &str) -> Result<Stanza> {
    ensure!(
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) && !name.starts_with('-'),
        "{name:?} is not the name of a package"
    );
    find_or_refresh(options, name, || Ok(show(&[name])?.into_iter().next()))
}

fn require_apt() -> Result<()> {
    ensure!(
        find_command("apt-cache") && find_command("apt-get") && find_command("dpkg-deb"),
        "the lab takes kernels and busybox from Debian packages, and this system has no apt: run it on Debian, or in a \
         container of it"
    );
    Ok(())
}

/// The candidates of those of `names` that apt knows.
fn show(names: &[&str]) -> Result<Vec<Stanza>> {
    let output = run("apt-cache", ["show", "--no-all-versions"].into_iter().chain(names.iter().copied()))?;
    Ok(listing::stanzas(&String::from_utf8_lossy(&output.stdout)))
}

/// How an update of apt's lists went.
#[derive(Clone, Debug)]
pub(super) enum Refreshed {
    /// All of them are new.
    Well,
    /// Not all, and why. apt-get does not call it a failure.
    Poorly(String),
}

/// Updates apt's lists, once in a run of the lab: later calls do nothing and return nothing.
pub(super) fn refresh(options: &Options) -> Result<Option<Refreshed>> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    let administrator = Administrator::obtain(options, "apt's lists of packages are missing or old", "apt-get update")?;
    eprintln!("lab: updating apt's lists of packages");
    let said = administrator.apt_get(options, &["update"]).context("cannot update apt's lists of packages")?;
    let failed = said.lines().any(|line| line.starts_with("W: Failed") || line.starts_with("W: Some index files"));
    Ok(Some(if failed { Refreshed::Poorly(listing::complaint(&said)) } else { Refreshed::Well }))
}

/// Looks for something, and again with new lists.
pub(super) fn find_or_refresh<T>(options: &Options, what: &str, find: impl Fn() -> Result<Option<T>>) -> Result<T> {
    require_apt()?;
    if let Some(found) = find()? {
        return Ok(found);
    }
    let refreshed = refresh(options)?;
    if refreshed.is_some()
        && let Some(found) = find()?
    {
        return Ok(found);
    }
    match refreshed {
        Some(Refreshed::Poorly(complaint)) => {
            bail!("apt's lists do not have {what}, and updating them failed: {complaint}")
        }
        _ => bail!("no package source of this system has {what}; check the name, and apt's sources"),
    }
}

/// The unpacked files of a package, in the cache: without documentation and kernel modules. Installs nothing.
pub fn fetch_deb(options: &Options, cache: &Cache, name: &str) -> Result<PathBuf> {
    let wanted = candidate(options, cache, name)?;
    match cache.find(entry_name(&wanted)) {
        Found::Entry(folder) => return Ok(folder),
        Found::Nothing => {}
        Found::Broken(reason) => eprintln!("lab: the cached package {name} is broken ({reason}); getting it again"),
    }
    let lock = cache.lock("packages", "fetches a package")?;
    if let Found::Entry(folder) = cache.find(entry_name(&wanted)) {
        return Ok(folder);
    }
    cache.require_space(wanted.size.saturating_mul(4), &format!("unpacking {name}"))?;
    let work = cache.work_folder(&lock, "packages")?;
    let (wanted, archive) = download(options, cache, &wanted, work.path())?;
    let folder = work.path().join("unpacked");
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    unpack(&archive, &folder, &LEFT_OUT)?;
    cache.publish(&lock, &folder, entry_name(&wanted))
}

/// Whether the package is in the cache, in the version that was last asked for.
pub fn is_cached(cache: &Cache, name: &str) -> bool {
    last_candidate(cache, name).is_some_and(|package| matches!(cache.find(entry_name(&package)), Found::Entry(_)))
}

/// What [`candidate`] last answered, without asking apt.
pub fn last_candidate(cache: &Cache, name: &str) -> Option<Candidate> {
    remembered(name, &cache.path("versions").join(name))
}

fn entry_name(package: &Candidate) -> PathBuf {
    Path::new("packages").join(format!("{}_{}", package.name, package.version))
}

/// Downloads a package into `folder`. Should the server have a newer version only, it is that one.
pub fn download(options: &Options, cache: &Cache, package: &Candidate, folder: &Path) -> Result<(Candidate, PathBuf)> {
    let error = match download_once(options, package, folder) {
        Ok(archive) => return Ok((package.clone(), archive)),
        Err(error) => error,
    };
    // Servers drop old versions, which apt's lists may still name.
    if format!("{error:#}").contains(listing::NOT_THERE) && refresh(options)?.is_some() {
        let newer = candidate(options, cache, &package.name)?;
        if newer != *package {
            let archive = download_once(options, &newer, folder)?;
            return Ok((newer, archive));
        }
    }
    Err(error)
}

fn download_once(options: &Options, package: &Candidate, folder: &Path) -> Result<PathBuf> {
    let Candidate { name, version, size } = package;
    let mut command = Command::new("apt-get");
    command.args(["-q", "download"]).arg(format!("{name}={version}")).current_dir(folder).env("LC_ALL", "C");
    if rustix::process::geteuid().is_root() {
        command.args(["-o", "APT::Sandbox::User=root"]); // the cache is not open to the user _apt
    }
    command.stdout(if options.verbose { Stdio::inherit() } else { Stdio::null() });
    let mut progress = Progress::start(format!("downloading {name} {version} ({:.1} MB)", *size as f64 / 1e6), *size);
    run_watched(&mut command, || progress.update(size_of_files(folder)))
        .with_context(|| format!("cannot download {name} {version}"))?;
    progress.finish("done");
    fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded {name} but left no .deb"))
}

/// Runs apt-get, with `watch` called now and then. Returns what it complained about, if it was well all the same.
///
/// # Errors
/// What it says of its failure.
pub(super) fn run_watched(command: &mut Command, mut watch: impl FnMut()) -> Result<String> {
    let mut complaints = tempfile::tempfile().context("cannot make a temporary file")?;
    command.stdin(Stdio::null()).stderr(complaints.try_clone().context("cannot duplicate a descriptor")?);
    let mut apt = Family::start(command, Vec::new()).context("cannot run apt-get")?;
    let status = loop {
        match apt.try_wait().context("cannot wait for apt-get")? {
            Some(status) => break status,
            None => watch(),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let mut said = Vec::new();
    complaints
        .rewind()
        .and_then(|()| complaints.read_to_end(&mut said))
        .context("cannot read what apt-get complained about")?;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(status.success(), "{}", listing::complaint(&said));
    Ok(said)
}

pub(super) fn size_of_files(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

/// Unpacks a .deb without installing it.
pub fn unpack(archive: &Path, folder: &Path, left_out: &[&str]) -> Result<()> {
    let context = || format!("cannot unpack {}", archive.display());
    let mut command = Command::new("dpkg-deb");
    command.arg("--fsys-tarfile").arg(archive).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut dpkg = Family::start(&mut command, Vec::new()).context("cannot run dpkg-deb").with_context(context)?;
    let files = dpkg.child().stdout.take().context("dpkg-deb has no output").with_context(context)?;
    let mut command = Command::new("tar");
    command.arg("-x").arg("--no-same-owner").arg("-C").arg(folder);
    command.args(left_out.iter().map(|path| format!("--exclude={path}")));
    let tar = command.env("LC_ALL", "C").stdin(files).output().context("cannot run tar").with_context(context)?;
    ensure!(tar.status.success(), "{}: {}", context(), listing::complaint(&String::from_utf8_lossy(&tar.stderr)));
    let status = dpkg.wait().with_context(context)?;
    ensure!(status.success(), "{}: dpkg-deb failed ({status}); the file is damaged", context());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn a_remembered_version_is_read_and_a_damaged_note_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("note");
        assert_eq!(remembered("a", &note), None);
        fs::write(&note, "1:2.3-4 500\n").unwrap();
        let expected = Candidate { name: "a".into(), version: "1:2.3-4".into(), size: 500 };
        assert_eq!(remembered("a", &note), Some(expected));
        for damaged in ["1:2.3-4", "", "1:2.3-4 many"] {
            fs::write(&note, damaged).unwrap();
            assert_eq!(remembered("a", &note), None, "{damaged:?}");
        }
    }

    #[test]
    fn a_note_older_than_the_lists_is_not_current() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("note");
        assert!(!is_current(&note));
        fs::write(&note, "1 2\n").unwrap();
        let file = fs::File::options().write(true).open(&note).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
        assert!(is_current(&note));
        if Path::new("/etc/apt").exists() {
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            assert!(!is_current(&note));
        }
    }

    #[test]
    fn names_that_could_be_options_are_refused() {
        for name in ["-o", "a b", "a;b", "../a"] {
            let error = format!("{:#}", look_up(&Options::default(), name).unwrap_err());
            assert!(error.contains("not the name of a package"), "{error}");
        }
    }
}
