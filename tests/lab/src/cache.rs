//! Where the lab keeps what took long to get: outside the checkout, `$UMBRA_LAB_CACHE`, else `$XDG_CACHE_HOME/umbra-lab`,
//! else `~/.cache/umbra-lab`.
//!
//! An entry is a folder that appears whole or not at all: it is made in a work folder beside it, sealed with a file of
//! checksums and renamed into place, under a lock that other runs of the lab wait for. Whoever uses an entry verifies
//! it; a broken one is made again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock, statvfs};

use crate::interrupt::{Cleanup, on_interrupt};

mod seal;

pub use seal::sha256;
use seal::{seal, verify};

/// The lab's cache.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// What a look into the cache found.
#[derive(Debug)]
pub enum Found {
    /// The entry, whole.
    Entry(PathBuf),
    /// No such entry.
    Nothing,
    /// An entry that is not what was put there, and why.
    Broken(String),
}

impl Cache {
    /// The cache that the environment names, created if need be.
    pub fn open() -> Result<Self> {
        let root = location(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
            .context("there is no place for a cache: set UMBRA_LAB_CACHE, or HOME, to an absolute path")?;
        Self::at(root)
    }

    /// The cache in this folder, created if need be.
    pub fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| {
            format!("cannot create the cache {}; set UMBRA_LAB_CACHE to another place", root.display())
        })?;
        let root = root.canonicalize().with_context(|| format!("cannot read the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// A path inside the cache.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Waits until no other run of the lab holds the lock of this name. `wait_for` says what the other one is doing.
    pub fn lock(&self, name: &str, wait_for: &str) -> Result<Lock> {
        let path = self.path(format!("{name}.lock"));
        let context = || format!("cannot lock {}", path.display());
        let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(context)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                eprintln!("lab: waiting for another run of the lab that {wait_for}");
                rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)).with_context(context)?;
            }
            Err(error) => return Err(error).with_context(context),
        }
        Ok(Lock { _file: file })
    }

    /// Looks for a whole entry.
    pub fn find(&self, name: impl AsRef<Path>) -> Found {
        let entry = self.path(name);
        match verify(&entry) {
            Ok(true) => Found::Entry(entry),
            Ok(false) => Found::Nothing,
            Err(reason) => Found::Broken(format!("{reason:#}")),
        }
    }

    /// An empty folder to make an entry in, on the cache's disk. It goes when it is dropped, and when a signal ends the
    /// lab; `lock` is held, so what an earlier run left after a power cut or SIGKILL can go too.
    pub fn work_folder(&self, lock: &Lock, name: &str) -> Result<WorkFolder> {
        let _ = lock;
        let path = self.path(format!("{name}.work"));
        let context = || format!("cannot make an empty work folder {}", path.display());
        remove(&path).with_context(context)?;
        fs::create_dir_all(&path).with_context(context)?;
        let path = Arc::new(path);
        let doomed = Arc::clone(&path);
        let cleanup = on_interrupt(move || drop(remove(&doomed)));
        Ok(WorkFolder { path, _cleanup: cleanup })
    }

    /// Makes `folder`, which lies in a work folder, the entry `name`.
    pub fn publish(&self, lock: &Lock, folder: &Path, name: impl AsRef<Path>) -> Result<PathBuf> {
        let _ = lock;
        let entry = self.path(name);
        let context = || format!("cannot keep {} in the cache", entry.display());
        seal(folder).with_context(context)?;
        remove(&entry).with_context(context)?;
        if let Some(parent) = entry.parent() {
            fs::create_dir_all(parent).with_context(context)?;
        }
        fs::rename(folder, &entry).with_context(context)?;
        Ok(entry)
    }

    /// Fails if the cache's disk has less than `bytes` free.
    pub fn require_space(&self, bytes: u64, purpose: &str) -> Result<()> {
        let space =
            statvfs(&self.root).with_context(|| format!("cannot ask for the free space of {}", self.root.display()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        ensure!(
            free >= bytes,
            "{purpose} needs {:.1} GB of disk space in {}, and {:.1} GB is free: make room there, or set UMBRA_LAB_CACHE \
             to a folder on another disk",
            bytes as f64 / 1e9,
            self.root.display(),
            free as f64 / 1e9
        );
        Ok(())
    }
}

/// Keeps other runs of the lab waiting until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// See [`Cache::work_folder`].
#[derive(Debug)]
pub struct WorkFolder {
    path: Arc<PathBuf>,
    _cleanup: Cleanup,
}

impl WorkFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("lab: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes a folder or a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn location(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = variable("UMBRA_LAB_CACHE") {
        ensure!(path.is_absolute(), "UMBRA_LAB_CACHE is {}, which is not an absolute path", path.display());
        return Ok(path);
    }
    // By its specification, a relative XDG_CACHE_HOME is to be ignored.
    if let Some(path) = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        return Ok(path.join("umbra-lab"));
    }
    match variable("HOME").filter(|path| path.is_absolute()) {
        Some(path) => Ok(path.join(".cache/umbra-lab")),
        None => bail!("neither UMBRA_LAB_CACHE, XDG_CACHE_HOME nor HOME is an absolute path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache")).unwrap();
        (folder, cache)
    }

    fn put(cache: &Cache, name: &str, content: &str) -> PathBuf {
        let lock = cache.lock("test", "tests").unwrap();
        let work = cache.work_folder(&lock, "test").unwrap();
        let folder = work.path().join("entry");
        fs::create_dir_all(folder.join("boot")).unwrap();
        fs::write(folder.join("boot/image"), content).unwrap();
        cache.publish(&lock, &folder, name).unwrap()
    }

    #[test]
    fn the_environment_names_the_place() {
        let with = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            location(move |name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| PathBuf::from(value)))
        };
        assert_eq!(with(&[("HOME", "/home/a")]).unwrap(), Path::new("/home/a/.cache/umbra-lab"));
        assert_eq!(with(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")]).unwrap(), Path::new("/c/umbra-lab"));
        assert_eq!(
            with(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "c")]).unwrap(),
            Path::new("/home/a/.cache/umbra-lab")
        );
        assert_eq!(with(&[("UMBRA_LAB_CACHE", "/x"), ("XDG_CACHE_HOME", "/c")]).unwrap(), Path::new("/x"));
        assert!(with(&[("UMBRA_LAB_CACHE", "x")]).is_err());
        assert!(with(&[]).is_err());
    }

    #[test]
    fn an_entry_is_found_whole_and_its_work_folder_is_gone() {
        let (_folder, cache) = cache();
        assert!(matches!(cache.find("images/a"), Found::Nothing));
        let entry = put(&cache, "images/a", "kernel");
        assert!(matches!(cache.find("images/a"), Found::Entry(path) if path == entry));
        assert!(!cache.path("test.work").exists());
    }

    #[test]
    fn a_changed_entry_is_broken_and_can_be_replaced() {
        let (_folder, cache) = cache();
        let entry = put(&cache, "a", "kernel");
        fs::write(entry.join("boot/image"), "kernex").unwrap();
        assert!(matches!(cache.find("a"), Found::Broken(reason) if reason.contains("boot/image")));
        put(&cache, "a", "kernel");
        assert!(matches!(cache.find("a"), Found::Entry(_)));
    }

    #[test]
    fn what_a_killed_run_left_does_not_stand_in_the_way() {
        let (_folder, cache) = cache();
        fs::create_dir_all(cache.path("test.work/entry/boot")).unwrap();
        fs::write(cache.path("test.work/entry/leftover"), "x").unwrap();
        let entry = put(&cache, "a", "kernel");
        assert!(!entry.join("leftover").exists());
    }

    #[test]
    fn a_lock_is_waited_for() {
        let (_folder, cache) = cache();
        let first = cache.lock("test", "tests").unwrap();
        let other = cache.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _second = other.lock("test", "tests").unwrap();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(std::time::Duration::from_millis(200)).is_err());
        drop(first);
        receiver.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn too_little_space_is_said_with_both_numbers() {
        let (_folder, cache) = cache();
        cache.require_space(1, "a test").unwrap();
        let message = cache.require_space(u64::MAX, "a test").unwrap_err().to_string();
        assert!(message.contains("a test needs") && message.contains("UMBRA_LAB_CACHE"), "{message}");
    }
}
