//! The nested host's kernel: a source of Linux 6.12, the lab's configuration and patch, built once and cached.
//!
//! An entry is found by the SHA-256 of what went into it: the source's version, the patch, the configuration and the
//! compiler. The build takes about six minutes of processor time and 1.3 GB of disk, which it gives back.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{Cache, Found, Lock, sha256};
use crate::options::Options;
use crate::packages::{self, Gives, Package};
use crate::process::Family;
use crate::progress::{Progress, clock};

mod source;

use source::Source;

const CONFIG: &str = include_str!("../nested_host/kernel.config");
const PATCH: &str = include_str!("../nested_host/kvm-fetch-private-memory.patch");

/// What the build needs, measured by building with nothing else in the path.
const TOOLS: [Package; 10] = [
    Package { name: "gcc", gives: Gives::Command("gcc") },
    Package { name: "libc6-dev", gives: Gives::File("/usr/include/stdio.h") },
    Package { name: "make", gives: Gives::Command("make") },
    Package { name: "flex", gives: Gives::Command("flex") },
    Package { name: "bison", gives: Gives::Command("bison") },
    Package { name: "bc", gives: Gives::Command("bc") },
    Package { name: "lz4", gives: Gives::Command("lz4") },
    Package { name: "xz-utils", gives: Gives::Command("xz") },
    Package { name: "patch", gives: Gives::Command("patch") },
    Package { name: "libelf-dev", gives: Gives::File("/usr/include/gelf.h") },
];

/// Parts of the source that the build does not read: a fifth of the files, and 0.6 GB.
const LEFT_OUT: [&str; 5] =
    ["*/Documentation/*/*", "*/tools/testing", "*/drivers/gpu/drm/amd/include", "*.dts", "*.dtsi"];

/// The most disk that downloading, unpacking and building take at a time, with some room.
const SPACE: u64 = 1_700_000_000;
/// Lines that the build prints: one for each file that it makes.
const BUILD_LINES: u64 = 2_095;
/// Processor time of the whole build, on a machine of 2023.
const PROCESSOR_TIME: Duration = Duration::from_secs(6 * 60 + 15);
/// Time to download and unpack, with a network of 100 Mbit/s.
const FETCH_TIME: Duration = Duration::from_secs(60);

/// The kernel's image, from the cache or built now.
pub fn prepare(options: &Options, cache: &Cache) -> Result<PathBuf> {
    let source = Source::choose(options, cache)?;
    let compiler = compiler_version();
    if let Some(compiler) = &compiler
        && let Some(image) = cached(cache, &key(source.identity(), compiler), true)
    {
        return Ok(image);
    }
    packages::ensure_installed(options, &TOOLS).context("cannot build the nested host's kernel")?;
    let compiler = compiler.or_else(compiler_version).context("gcc does not tell its version")?;
    let lock = cache.lock("kernel", "builds the nested host's kernel")?;
    if let Some(image) = cached(cache, &key(source.identity(), &compiler), false) {
        return Ok(image);
    }
    let place = cache.path("");
    ensure!(
        !place.as_os_str().as_encoded_bytes().iter().any(|byte| byte.is_ascii_whitespace() || *byte == b':'),
        "a kernel cannot be built in a folder whose path has spaces or colons, like the cache {}; set UMBRA_LAB_CACHE to \
         another one",
        place.display()
    );
    cache.require_space(SPACE, "building the nested host's kernel")?;
    build(options, cache, &lock, &source, &compiler).context("cannot build the nested host's kernel")
}

/// Whether the kernel is in the cache. Asks apt nothing.
pub fn is_ready(cache: &Cache) -> Result<bool> {
    let (Some(source), Some(compiler)) = (Source::last(cache)?, compiler_version()) else { return Ok(false) };
    Ok(cached(cache, &key(source.identity(), &compiler), false).is_some())
}

fn cached(cache: &Cache, key: &str, say: bool) -> Option<PathBuf> {
    match cache.find(Path::new("kernel").join(key)) {
        Found::Entry(folder) => Some(folder.join("bzImage")),
        Found::Nothing => None,
        Found::Broken(reason) => {
            if say {
                eprintln!("lab: the cached kernel is broken ({reason}); building it again");
            }
            None
        }
    }
}

/// The name of the entry for these inputs.
fn key(source: &str, compiler: &str) -> String {
    let inputs = [source, PATCH, CONFIG, compiler];
    // With lengths, no two lists of inputs make the same text.
    let text: String = inputs.iter().map(|input| format!("{}:{input}", input.len())).collect();
    sha256(text.as_bytes())[..16].to_owned()
}

fn compiler_version() -> Option<String> {
    let output = Command::new("gcc").arg("--version").env("LC_ALL", "C").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

fn build(options: &Options, cache: &Cache, lock: &Lock, source: &Source, compiler: &str) -> Result<PathBuf> {
    let processors =
        std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let estimate = FETCH_TIME + PROCESSOR_TIME / processors;
    eprintln!(
        "lab: the nested host's kernel is not in the cache: building it once takes about {} on {processors} processors",
        clock(Duration::from_secs((estimate.as_secs() / 30 + 1) * 30))
    );
    let log = cache.path("kernel-build.log");
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let work = cache.work_folder(lock, "kernel")?;
    // If the server has a newer source than apt's lists, the entry will be the newer one's.
    let (source, tarball) = source.fetch(options, cache, work.path())?;
    let tree = work.path().join("source");
    unpack(&tarball, &tree, &log)?;
    if tarball.starts_with(work.path()) {
        fs::remove_file(&tarball).with_context(|| format!("cannot remove {}", tarball.display()))?;
    }

    apply_patch(&tree, &log, &source)?;
    fs::write(tree.join("lab.config"), CONFIG).context("cannot write the configuration")?;

    let mut lines = 0;
    let mut progress = Progress::start("building the kernel", BUILD_LINES);
    let mut count = |_: &str| {
        lines += 1;
        progress.update(lines);
    };
    let jobs = format!("-j{processors}");
    logged(make(&tree).args(["allnoconfig", "KCONFIG_ALLCONFIG=lab.config"]), &log, &mut count)?;
    logged(make(&tree).args([&jobs, "bzImage"]), &log, &mut count)?;
    progress.finish("done");

    let entry = work.path().join("entry");
    let context = || format!("cannot write {}", entry.display());
    fs::create_dir(&entry).with_context(context)?;
    fs::copy(tree.join("arch/x86/boot/bzImage"), entry.join("bzImage")).with_context(context)?;
    fs::copy(tree.join(".config"), entry.join("config")).with_context(context)?;
    fs::write(entry.join("inputs"), format!("{source}\n{compiler}\n")).with_context(context)?;
    let entry = cache.publish(lock, &entry, Path::new("kernel").join(key(source.identity(), compiler)))?;

    let progress = Progress::start("removing the source", 0);
    drop(work);
    progress.finish("done");
    Ok(entry.join("bzImage"))
}

fn unpack(tarball: &Path, tree: &Path, log: &Path) -> Result<()> {
    let mut progress = Progress::start("unpacking the source", 0);
    fs::create_dir(tree).with_context(|| format!("cannot create {}", tree.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(tarball).args(LEFT_OUT.map(|path| format!("--exclude={path}")));
    tar.args(["--strip-components=1", "--no-same-owner", "--checkpoint=2000", "-C"]).arg(tree);
    logged(&mut tar, log, |_| progress.update(0)).with_context(|| format!("cannot unpack {}", tarball.display()))?;
    progress.finish("done");
    Ok(())
}

/// make, so that neither the time nor the user's name get into the kernel.
fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("-C").arg(tree).arg("--no-print-directory");
    command.env("KBUILD_BUILD_TIMESTAMP", "@0").env("KBUILD_BUILD_USER", "lab").env("KBUILD_BUILD_HOST", "lab");
    // What a calling make or shell may have set for builds of its own.
    for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARCH", "CROSS_COMPILE", "KBUILD_OUTPUT", "CFLAGS", "LDFLAGS"]
    {
        command.env_remove(variable);
    }
    command
}

fn apply_patch(tree: &Path, log: &Path, source: &Source) -> Result<()> {
    let file = tree.join("lab.patch");
    fs::write(&file, PATCH).with_context(|| format!("cannot write {}", file.display()))?;
    let patch = |arguments: &[&str]| {
        let mut command = Command::new("patch");
        command.args(["-p1", "--batch", "--input=lab.patch"]).args(arguments).current_dir(tree);
        command
    };
    logged(&mut patch(&["--dry-run"]), log, |_| {}).with_context(|| {
        format!(
            "the lab's patch does not fit {source}: tests/lab/nested_host/kvm-fetch-private-memory.patch needs \
             an update for it"
        )
    })?;
    logged(&mut patch(&[]), log, |_| {}).context("cannot apply the lab's patch")
}

/// Runs a step, appends what it prints to the log, and reports each line. A failure shows the log's end.
pub fn logged(command: &mut Command, log: &Path, mut each_line: impl FnMut(&str)) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let errors = writer.try_clone().context("cannot make a pipe")?;
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(writer).stderr(errors);
    let child = Family::start(command, Vec::new());
    // The command holds the pipe's writing ends, which must close for the reader to see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.with_context(|| format!("cannot run {program}"))?;
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read what {program} prints"))? > 0 {
        file.write_all(&line).with_context(|| format!("cannot write {}", log.display()))?;
        each_line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    ensure!(!text.contains("No space left on device"), "the disk of {} is full", log.display());
    bail!("{program} failed ({status}); the end of {}:\n{}", log.display(), tail(&text, 20))
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_changes_with_every_input() {
        let first = key("6.12.117-1", "gcc 12");
        assert_eq!(first, key("6.12.117-1", "gcc 12"));
        assert_eq!(first.len(), 16);
        assert_ne!(first, key("6.12.118-1", "gcc 12"));
        assert_ne!(first, key("6.12.117-1", "gcc 13"));
    }

    #[test]
    fn a_failed_step_shows_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 100; echo broken >&2; exit 3"]);
        let error = logged(&mut command, &log, |line| lines.push(line.to_owned())).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("99\n100\nbroken"), "{error}");
        assert!(!error.contains("\n50\n"), "only the end: {error}");
        assert_eq!(lines.len(), 101);
        assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 101);
    }

    #[test]
    fn a_full_disk_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'tar: x: Cannot write: No space left on device'; exit 2"]);
        let error = logged(&mut command, &log, |_| {}).unwrap_err().to_string();
        assert!(error.starts_with("the disk of ") && error.ends_with(" is full"), "{error}");
    }

    #[test]
    fn a_patch_that_does_not_fit_names_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::File { path: "linux-6.12.999.tar.xz".into(), sum: String::new() };
        let error = apply_patch(folder.path(), &folder.path().join("log"), &source).unwrap_err();
        assert!(format!("{error:#}").contains("does not fit linux-6.12.999.tar.xz"), "{error:#}");
    }

    #[test]
    fn the_tail_of_a_short_text_is_all_of_it() {
        assert_eq!(tail("a\nb\n", 5), "a\nb");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
