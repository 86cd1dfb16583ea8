//! A memory cgroup around one `umbra`, which counts the memory that its guest costs.
//!
//! A guest_memfd tells nobody how much it holds. Its pages are unevictable page cache, and those of a memfd are shared
//! memory; the cgroup counts both for the processes in it alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, process};

use anyhow::Context;

use crate::requirement::Unavailable;

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup, removed when it is dropped.
#[derive(Debug)]
pub struct MemoryCgroup {
    path: PathBuf,
}

impl MemoryCgroup {
    /// Makes a cgroup.
    ///
    /// # Errors
    /// [`Unavailable`] without memory cgroups of version 2, or without the permission to make one.
    pub fn new() -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let needs = |what: String| Unavailable::Needs(format!("memory cgroups (version 2) and root: {what}"));
        // Writing this is how a controller is made available to children; it may be already.
        let control = Path::new(ROOT).join("cgroup.subtree_control");
        fs::write(&control, "+memory").map_err(|error| needs(format!("{}: {error}", control.display())))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(ROOT).join(format!("kvm-tests-{}-{number}", process::id()));
        fs::create_dir(&path).map_err(|error| needs(format!("{}: {error}", path.display())))?;
        Ok(Self { path })
    }

    /// A command that runs a program in it from its first instruction on. Arguments may follow.
    pub fn command_inside(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]);
        command.arg(self.path.join("cgroup.procs")).arg(program);
        command
    }

    /// Bytes of memfd and guest_memfd pages that its processes hold. Counting lags by some pages for each processor.
    ///
    /// # Errors
    /// Figures that can't be read.
    pub fn guest_memory(&self) -> anyhow::Result<u64> {
        let path = self.path.join("memory.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let figure = |name: &str| -> anyhow::Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("there is no {name} in {}", path.display()))?.parse()?)
        };
        Ok(figure("shmem")? + figure("unevictable")?)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A process that is still in it would be one that the test left behind, and has reported.
        let _ = fs::remove_dir(&self.path);
    }
}
