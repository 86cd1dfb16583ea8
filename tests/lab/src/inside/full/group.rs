//! The control group of a VMM: what memory the host's kernel holds for it.
//!
//! Behind guest RAM there are two kinds of memory. What the VMM maps is shmem; what no process can map is in a guest_memfd,
//! whose pages the kernel counts as unevictable, as nothing else of a VMM that locks no memory is. Both are charged to the
//! group of the process that touched them first, which is the VMM or one of its vCPUs. A thread looks at their sum every
//! few milliseconds and keeps the largest.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const ROOT: &str = "/sys/fs/cgroup";
/// How often the memory is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// A control group, gone when it is dropped and empty.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    over: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    watcher: Option<JoinHandle<()>>,
}

impl Group {
    /// A new group of this name.
    pub fn create(name: &str) -> Result<Self> {
        let context = "cannot make a control group with memory accounting";
        let root = Path::new(ROOT);
        fs::write(root.join("cgroup.subtree_control"), "+memory").context(context)?;
        let folder = root.join(name);
        fs::create_dir(&folder).context(context)?;
        let stat = fs::read_to_string(folder.join("memory.stat"));
        if stat.ok().as_deref().and_then(guest_memory).is_none() {
            let _ = fs::remove_dir(&folder); // the error below matters more
            bail!("{context}: {ROOT} is not the second version of control groups");
        }
        let mut group = Self { folder, over: Arc::default(), peak: Arc::default(), watcher: None };
        let (file, over, peak) = (group.folder.join("memory.stat"), Arc::clone(&group.over), Arc::clone(&group.peak));
        group.watcher = Some(std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if let Some(bytes) = fs::read_to_string(&file).ok().as_deref().and_then(guest_memory) {
                    peak.fetch_max(bytes, Ordering::Relaxed);
                }
                std::thread::sleep(INTERVAL);
            }
        }));
        Ok(group)
    }

    /// Runs `start` in the group, so that a process which it starts is born there.
    pub fn within<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let move_to = |folder: &Path| {
            fs::write(folder.join("cgroup.procs"), "0").with_context(|| format!("cannot enter {}", folder.display()))
        };
        move_to(&self.folder)?;
        let started = start();
        move_to(Path::new(ROOT))?;
        started
    }

    /// The largest sum seen so far, in bytes.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join(); // it does not panic
        }
        let _ = fs::remove_dir(&self.folder); // in the lab, it goes with the nested host at the latest
    }
}

/// The bytes behind guest RAM in a `memory.stat`.
fn guest_memory(stat: &str) -> Option<u64> {
    let value = |name: &str| {
        stat.lines().filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == name)?.1.trim().parse::<u64>().ok()
    };
    value("shmem")?.checked_add(value("unevictable")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_memory_count() {
        let stat = "anon 4096\nfile 700\nshmem 400\nshmem_thp 9\nunevictable 300\nslab 5\n";
        assert_eq!(guest_memory(stat), Some(700));
        assert_eq!(guest_memory("anon 4096\nshmem 5\n"), None);
        assert_eq!(guest_memory("shmem many\nunevictable 1\n"), None);
    }
}
