//! The Debian that `cargo lab demo --full` boots: a minimal system with systemd, ssh and iproute2 in an ext4 image.
//!
//! It is debootstrapped from the server that apt is set to, in a minute and a half, and kept in the cache. An entry is found
//! by the SHA-256 of what went into it ([`recipe`]) and has the image (sparse, a third of its size), the modules that the
//! guest's kernel needs before it has the disk, and its inputs. The image holds no secret: the keys of a run are made for it
//! ([`keys`]) and reach the guest in its initramfs ([`initramfs`]), which puts them into memory. The kernel is Debian's,
//! unmodified; its other modules are in the image.
//!
//! Whoever boots the image boots a copy: an entry never changes.

pub mod initramfs;
pub mod keys;
mod recipe;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Found};
use crate::kernel::logged;
use crate::options::Options;
use crate::packages::{self, Administrator, Gives, Package, debian_mirror};
use crate::progress::Progress;

use recipe::Recipe;

/// What making, booting and entering the image needs on this machine.
const TOOLS: [Package; 6] = [
    Package { name: "debootstrap", gives: Gives::File("/usr/sbin/debootstrap") },
    Package { name: "debian-archive-keyring", gives: Gives::File("/usr/share/keyrings/debian-archive-keyring.gpg") },
    Package { name: "e2fsprogs", gives: Gives::File("/sbin/mke2fs") },
    Package { name: "openssh-client", gives: Gives::Command("ssh") },
    Package { name: "iproute2", gives: Gives::Command("ip") },
    Package { name: "util-linux", gives: Gives::Command("unshare") },
];
/// What is installed beyond Debian's minimum. D-Bus carries the power button's message from the login manager to systemd.
const PACKAGES: &str = "systemd-sysv,udev,dbus,kmod,openssh-server,iproute2";
/// Modules of Debian's kernel without which there is no disk, below its folder of modules. PCI and ext4 are built in.
const MODULES: [&str; 1] = ["kernel/drivers/block/virtio_blk.ko.xz"];
/// The most disk that making an image takes at a time: packages, system and image.
const SPACE: u64 = 1_500_000_000;
/// Steps that debootstrap and the script tell.
const STEPS: u64 = 639;

/// A system to boot.
#[derive(Debug)]
pub struct System {
    /// Its ext4 image. Not to be written.
    pub image: PathBuf,
    /// Modules for its initramfs, in the order in which they are loaded.
    pub modules: Vec<PathBuf>,
    /// What it is called.
    pub name: String,
}

/// The image for this package of a kernel, from the cache or made now.
pub fn prepare(options: &Options, cache: &Cache, kernel_package: &str) -> Result<System> {
    packages::ensure_installed(options, &TOOLS).context("cannot make a Debian system")?;
    let mirror = debian_mirror(options).context("cannot make a Debian system")?;
    let kernel = packages::candidate(options, cache, kernel_package)?;
    let recipe = Recipe { suite: mirror.suite.clone(), packages: PACKAGES, kernel };
    if let Some(system) = cached(cache, &recipe, true) {
        return Ok(system);
    }
    let lock = cache.lock("debian", "makes a Debian system")?;
    if let Some(system) = cached(cache, &recipe, false) {
        return Ok(system);
    }
    cache.require_space(SPACE, "making a Debian system")?;
    let work = cache.work_folder(&lock, "debian")?;
    let entry = make(options, cache, work.path(), &recipe, &mirror.server).context("cannot make a Debian system")?;
    cache.publish(&lock, &entry, recipe.entry())?;
    cached(cache, &recipe, false).context("the Debian system that was made is not in the cache")
}

fn cached(cache: &Cache, recipe: &Recipe, say: bool) -> Option<System> {
    match cache.find(recipe.entry()) {
        Found::Entry(folder) => Some(System {
            image: folder.join("image"),
            modules: MODULES.iter().filter_map(|path| Some(folder.join(Path::new(path).file_name()?))).collect(),
            name: format!("Debian {}", recipe.suite),
        }),
        Found::Nothing => None,
        Found::Broken(reason) => {
            if say {
                eprintln!("lab: the cached Debian system is broken ({reason}); making it again");
            }
            None
        }
    }
}

/// Makes the entry's folder in `work`.
fn make(options: &Options, cache: &Cache, work: &Path, recipe: &Recipe, server: &str) -> Result<PathBuf> {
    let command = "debootstrap";
    let administrator = Administrator::obtain(options, "a Debian system is made by root only", command)?;
    let download = work.join("download");
    let kernel = work.join("kernel");
    for folder in [&download, &kernel] {
        fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let (found, archive) = packages::download(options, cache, &recipe.kernel, &download)?;
    if found != recipe.kernel {
        bail!("the server has {} {} only: please try again", found.name, found.version);
    }
    packages::unpack(&archive, &kernel, &[])?;
    let modules = modules_folder(&kernel)?;
    let script = work.join("build");
    fs::write(&script, recipe::BUILD).with_context(|| format!("cannot write {}", script.display()))?;
    let settings = work.join("etc");
    recipe::write_settings(&settings)?;

    let log = cache.path("debian-build.log");
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let owner = format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let arguments: [OsString; 8] = [
        script.into(),
        work.into(),
        server.into(),
        recipe.suite.clone().into(),
        recipe.packages.into(),
        modules.clone().into(),
        settings.into(),
        owner.into(),
    ];
    // What debootstrap mounts in the system goes with this namespace, however it ends.
    let mut command = administrator.command("unshare")?;
    command.args(["--mount", "--propagation", "private", "sh"]).args(arguments);
    let mut steps = 0;
    let mut progress = Progress::start(format!("making a minimal Debian {}, once", recipe.suite), STEPS);
    let count = |line: &str| {
        steps += u64::from(line.starts_with("I: "));
        progress.update(steps);
    };
    logged(&mut command, &log, count)?;
    progress.finish("done");

    let entry = work.join("entry");
    let context = || format!("cannot write {}", entry.display());
    fs::create_dir(&entry).with_context(context)?;
    fs::rename(work.join("image"), entry.join("image")).with_context(context)?;
    for module in MODULES {
        let from = modules.join(module);
        let name = Path::new(module).file_name().context("a module has a name")?;
        fs::copy(&from, entry.join(name)).with_context(|| format!("the kernel has no module {}", from.display()))?;
    }
    fs::write(entry.join("inputs"), recipe.text()).with_context(context)?;
    Ok(entry)
}

/// `lib/modules/RELEASE` in an unpacked package of a kernel.
fn modules_folder(package: &Path) -> Result<PathBuf> {
    for place in ["lib/modules", "usr/lib/modules"] {
        let Ok(mut entries) = fs::read_dir(package.join(place)) else { continue };
        if let Some(entry) = entries.next() {
            return Ok(entry?.path());
        }
    }
    bail!("the kernel's package has no modules")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::Candidate;

    #[test]
    fn modules_are_found_in_both_places() {
        for place in ["lib/modules", "usr/lib/modules"] {
            let package = tempfile::tempdir().unwrap();
            assert!(modules_folder(package.path()).is_err());
            let folder = package.path().join(place).join("6.12");
            fs::create_dir_all(&folder).unwrap();
            assert_eq!(modules_folder(package.path()).unwrap(), folder);
        }
    }

    #[test]
    fn a_changed_image_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache")).unwrap();
        let kernel = Candidate { name: "linux-image".into(), version: "1".into(), size: 1 };
        let recipe = Recipe { suite: "bookworm".into(), packages: PACKAGES, kernel };
        assert!(cached(&cache, &recipe, false).is_none());
        let lock = cache.lock("debian", "tests").unwrap();
        let work = cache.work_folder(&lock, "debian").unwrap();
        let entry = work.path().join("entry");
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join("image"), "ext4").unwrap();
        let entry = cache.publish(&lock, &entry, recipe.entry()).unwrap();
        let system = cached(&cache, &recipe, false).unwrap();
        assert_eq!((system.name.as_str(), system.modules.len()), ("Debian bookworm", MODULES.len()));
        fs::write(entry.join("image"), "ext3").unwrap();
        assert!(cached(&cache, &recipe, false).is_none());
    }
}
