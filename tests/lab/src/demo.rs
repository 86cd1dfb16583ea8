//! `cargo lab demo`: an unmodified Debian kernel with its RAM in memory that no process can map, and the proof.
//!
//! Out here: fetch the kernel's package and busybox, build `umbra`, make the guest's initramfs, start the nested host
//! once, judge the figures and print them. Inside ([`crate::inside::demo`]): boot the guest with `isolation=software`
//! and then, as the control, with `isolation=none`; each fills a part of its memory with a canary, and a program that is
//! not the VMM looks for it in all that the VMM has mapped or open.

pub mod figures;
pub mod full;
mod initramfs;
mod umbra;

use std::ffi::OsString;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::cache::Cache;
use crate::commands::exit_code;
use crate::inside::demo::FIGURES;
use crate::inside::guest::Limits;
use crate::interrupt::on_interrupt;
use crate::machine::{Job, Machine, Terminal};
use crate::options::Options;
use crate::packages::{fetch_deb, newest_matching, resolve_meta};

/// The kernel that is booted if none is named.
const DEFAULT_KERNEL: &str = "linux-image-6.12*-cloud-amd64";
/// How much RAM the guest has if nothing is said.
const DEFAULT_MEMORY: &str = "512M";
/// The same with `--full`.
pub const DEFAULT_FULL_MEMORY: &str = "1G";
/// How long a guest may run whose shell the user has.
const INTERACTIVE_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Options of `lab demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Boot with isolation=software only, and get the guest's shell (`exit` powers the guest off)
    #[arg(long, conflicts_with_all = ["json", "full"])]
    interactive: bool,
    /// Boot a whole Debian system with disk and network, put it to work, and steer it through the API
    #[arg(long)]
    full: bool,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// The Debian package of the guest's kernel; a meta-package stands for its newest image [default: the newest
    /// linux-image-6.12*-cloud-amd64]
    #[arg(long, value_name = "NAME")]
    kernel_package: Option<String>,
    /// Size of the guest's RAM [default: 512M; with --full, 1G]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    memory: Option<String>,
}

/// A size such as 512M, as umbra takes it; whether it is a possible size is for umbra to say.
fn memory_size(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['K', 'k', 'M', 'm', 'G', 'g', 'T', 't']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("expected a number of bytes, or a number with K, M, G or T".to_owned());
    }
    Ok(text.to_owned())
}

/// Runs the demonstration. The exit status is 0 only if it shows what it should.
pub fn run(args: &Args, options: &Options) -> Result<ExitCode> {
    if args.interactive && !std::io::stdin().is_terminal() {
        bail!("--interactive gives the guest's shell to a terminal, and standard input is none");
    }
    let json = args.json.as_deref().map(JsonFile::prepare).transpose()?;
    if args.full {
        let memory = args.memory.as_deref().unwrap_or(DEFAULT_FULL_MEMORY);
        return full::run(args.kernel_package.as_deref(), memory, json.as_ref(), options);
    }
    let machine = Machine::prepare(options)?;
    let out = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = out.path().to_owned();
    let _cleanup = on_interrupt(move || drop(fs::remove_dir_all(folder)));
    let guest = Guest::prepare(args.kernel_package.as_deref(), options, out.path())?;

    let lab = std::env::current_exe().context("cannot find the lab's own program")?;
    let mut argv: Vec<OsString> = vec![lab.into(), "inside".into(), "demo".into()];
    let mut option = |name: &str, value: OsString| argv.extend([name.into(), value]);
    option("--umbra", guest.umbra.into());
    option("--kernel", guest.kernel.into());
    option("--kernel-name", guest.release.into());
    option("--initramfs", guest.initramfs.into());
    option("--memory", args.memory.as_deref().unwrap_or(DEFAULT_MEMORY).into());
    option("--folder", out.path().into());
    let (terminal, limit) = if args.interactive {
        argv.push("--interactive".into());
        (Terminal::Interactive, INTERACTIVE_LIMIT)
    } else {
        (Terminal::Stream, Limits::default().sum() * 2)
    };
    if options.verbose {
        argv.push("--show-console".into());
    }

    let time_limit = options.time_limit(limit);
    let job = Job { argv, env: Vec::new(), out: out.path().to_owned(), time_limit, terminal };
    let status = machine.run(&job)?;
    if status != 0 {
        return Ok(exit_code(status));
    }
    if args.interactive {
        return Ok(ExitCode::SUCCESS);
    }

    let text = fs::read(out.path().join(FIGURES)).context("the nested host left no figures")?;
    let outcome: figures::Outcome =
        serde_json::from_slice(&text).context("the nested host's figures are not as expected")?;
    if let Some(json) = json {
        json.write(&outcome.summary())?;
    }
    if options.verbose {
        eprint!("{}", outcome.details());
    }
    let shortcomings = outcome.shortcomings();
    println!("\n{outcome}");
    if shortcomings.is_empty() {
        println!("{}", outcome.verdict());
        return Ok(ExitCode::SUCCESS);
    }
    bail!("the demonstration failed: {}", shortcomings.join("; "))
}

/// The guest of the short demonstration: all that boots it.
pub struct Guest {
    /// The umbra program.
    pub umbra: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its release.
    pub release: String,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl Guest {
    /// Makes it ready, with its initramfs in `out`.
    pub fn prepare(kernel_package: Option<&str>, options: &Options, out: &Path) -> Result<Self> {
        let cache = Cache::open()?;
        let kernel = Kernel::fetch(kernel_package, options, &cache)?;
        let busybox = fetch_busybox(options, &cache)?;
        let umbra = umbra::build(options)?;
        let initramfs = out.join("initramfs");
        fs::write(&initramfs, initramfs::build(&busybox))
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        Ok(Self { umbra, kernel: kernel.image, release: kernel.release, initramfs })
    }
}

/// The guest's kernel.
struct Kernel {
    image: PathBuf,
    release: String,
    /// Its package.
    package: String,
}

impl Kernel {
    fn fetch(package: Option<&str>, options: &Options, cache: &Cache) -> Result<Self> {
        let package = match package {
            Some(name) => resolve_meta(options, name)?,
            None => newest_matching(options, DEFAULT_KERNEL)?,
        };
        let unpacked = fetch_deb(options, cache, &package)?;
        Self::find(&unpacked, &package).with_context(|| format!("the package {package} is not a kernel to boot"))
    }

    /// The one kernel image in an unpacked package.
    fn find(unpacked: &Path, package: &str) -> Result<Self> {
        let boot = unpacked.join("boot");
        let mut images = Vec::new();
        if boot.is_dir() {
            let context = || format!("cannot list {}", boot.display());
            for entry in fs::read_dir(&boot).with_context(context)? {
                let entry = entry.with_context(context)?;
                if let Some(release) = entry.file_name().to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
                    images.push(Self { image: entry.path(), release: release.to_owned(), package: package.to_owned() });
                }
            }
        }
        match <[Self; 1]>::try_from(images) {
            Ok([kernel]) => Ok(kernel),
            Err(images) => bail!("it has {} files named /boot/vmlinuz-RELEASE, not one", images.len()),
        }
    }
}

/// The content of a statically linked busybox.
fn fetch_busybox(options: &Options, cache: &Cache) -> Result<Vec<u8>> {
    let unpacked = fetch_deb(options, cache, "busybox-static")?;
    let places = ["bin/busybox", "usr/bin/busybox"].map(|name| unpacked.join(name));
    let program = places.iter().find(|path| path.is_file()).context("the package busybox-static has no busybox")?;
    fs::read(program).with_context(|| format!("cannot read {}", program.display()))
}

/// The file that the user asked for, complete or not at all.
struct JsonFile(PathBuf);

impl JsonFile {
    /// Finds out early, before anything takes long, whether the file can be written.
    fn prepare(path: &Path) -> Result<Self> {
        if path.is_dir() {
            bail!("cannot write {}: it is a folder", path.display());
        }
        let file = Self(path.to_owned());
        file.temporary()?;
        Ok(file)
    }

    /// A file beside it, which goes unless it becomes it.
    fn temporary(&self) -> Result<NamedTempFile> {
        let folder = match self.0.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            bail!("cannot write {}: there is no folder {}", self.0.display(), folder.display());
        }
        let mut builder = tempfile::Builder::new();
        builder.permissions(fs::Permissions::from_mode(0o644));
        builder.tempfile_in(folder).with_context(|| format!("cannot write {}", self.0.display()))
    }

    fn write(&self, summary: &impl serde::Serialize) -> Result<()> {
        let context = || format!("cannot write {}", self.0.display());
        let mut text = serde_json::to_string_pretty(summary).with_context(context)?;
        text.push('\n');
        let mut temporary = self.temporary()?;
        temporary.write_all(text.as_bytes()).with_context(context)?;
        temporary.persist(&self.0).with_context(context)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_before_anything_starts() {
        for good in ["512M", "1g", "2T", "0", "1", "123456789K"] {
            assert_eq!(memory_size(good).unwrap(), good);
        }
        for bad in ["", "M", "-1", "512M,unmappable=off", "1M2", "MM", "0x10", "½G"] {
            assert!(memory_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kernel_is_found_by_its_name() {
        let package = tempfile::tempdir().unwrap();
        let boot = package.path().join("boot");
        assert!(Kernel::find(package.path(), "linux-image").is_err());
        fs::create_dir(&boot).unwrap();
        fs::write(boot.join("System.map-6.12.1"), "").unwrap();
        assert!(Kernel::find(package.path(), "linux-image").is_err());
        fs::write(boot.join("vmlinuz-6.12.1+deb12-cloud-amd64"), "").unwrap();
        let kernel = Kernel::find(package.path(), "linux-image").unwrap();
        assert_eq!(kernel.release, "6.12.1+deb12-cloud-amd64");
        assert_eq!(kernel.image, boot.join("vmlinuz-6.12.1+deb12-cloud-amd64"));
        fs::write(boot.join("vmlinuz-6.12.2"), "").unwrap();
        assert!(Kernel::find(package.path(), "linux-image").is_err());
    }

    #[test]
    fn json_file_is_whole_or_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures.json");
        fs::write(&path, "old").unwrap();
        drop(JsonFile::prepare(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        JsonFile::prepare(&path).unwrap().write(&figures::tests::success().summary()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n") && text.ends_with("}\n"), "{text}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for bad in [folder.path().to_owned(), folder.path().join("missing/figures.json")] {
            let Err(error) = JsonFile::prepare(&bad) else { panic!("{}", bad.display()) };
            assert!(error.to_string().contains(bad.to_str().unwrap()), "{error}");
        }
    }
}
