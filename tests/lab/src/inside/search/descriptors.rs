//! The files behind another process's descriptors.
//!
//! Each descriptor is duplicated with `pidfd_getfd` and, where the file can be opened again, opened again: so the other
//! process keeps its file offset, and a descriptor that only writes can be read.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::opaque;

/// A regular file (memfd and guest_memfd included) that the process has open.
pub struct OpenFile {
    /// Path or name, and the descriptor.
    pub name: String,
    /// Device (major, minor) and inode, as `/proc/PID/maps` writes them.
    pub identity: ((u32, u32), u64),
    /// Size in bytes.
    pub size: u64,
    /// How to read it.
    pub access: Access,
}

/// Ways into a file.
pub enum Access {
    /// An open file description of our own.
    Own(File),
    /// The process's own open file description: its offset must not be moved.
    Borrowed(File),
    /// Neither reading nor mapping it is allowed, with both errors: a guest_memfd.
    Refused(String),
    /// It can't be read but mapped.
    MappableOnly(opaque::Mapped),
}

/// Everything that a process has open.
#[derive(Default)]
pub struct Descriptors {
    /// Regular files, each once.
    pub files: Vec<OpenFile>,
    /// What has no contents that stay: pipes, sockets, devices, directories, event descriptors.
    pub streams: Vec<String>,
}

impl Descriptors {
    /// Duplicates all descriptors of process `pid`, which needs the right to debug it.
    pub fn of(pid: u32) -> Result<Self> {
        let process =
            i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is no process id"))?;
        let process = pidfd_open(process, PidfdFlags::empty()).with_context(|| format!("there is no process {pid}"))?;
        let directory = format!("/proc/{pid}/fd");
        let mut found = Self::default();
        for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot list {directory}"))? {
            let entry = entry.with_context(|| format!("cannot list {directory}"))?;
            let number: RawFd = match entry.file_name().to_string_lossy().parse() {
                Ok(number) => number,
                Err(_) => continue,
            };
            // A descriptor may be closed meanwhile.
            let Ok(path) = std::fs::read_link(entry.path()) else { continue };
            let duplicate = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                Ok(duplicate) => duplicate,
                Err(rustix::io::Errno::BADF) => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot take descriptor {number} of process {pid}"));
                }
            };
            found.add(format!("{} (descriptor {number})", path.display()), duplicate)?;
        }
        Ok(found)
    }

    fn add(&mut self, name: String, descriptor: OwnedFd) -> Result<()> {
        let borrowed = File::from(descriptor);
        let metadata = borrowed.metadata().with_context(|| format!("cannot look at {name}"))?;
        if !metadata.is_file() {
            self.streams.push(name);
            return Ok(());
        }
        let identity = identity(&metadata);
        if !self.files.iter().any(|known| known.identity == identity) {
            let access = access(borrowed);
            self.files.push(OpenFile { name, identity, size: metadata.len(), access });
        }
        Ok(())
    }
}

/// Device and inode of a file.
fn identity(metadata: &Metadata) -> ((u32, u32), u64) {
    let device = metadata.dev();
    ((rustix::fs::major(device), rustix::fs::minor(device)), metadata.ino())
}

fn access(borrowed: File) -> Access {
    let path = format!("/proc/self/fd/{}", borrowed.as_raw_fd());
    let again = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    // That a file opens does not mean that it reads. Reading a hole does not fill it.
    let readable = |file: &File| file.read_at(&mut [0], 0);
    let unreadable = match (again.map(|own| (readable(&own), own)), readable(&borrowed)) {
        (Ok((Ok(_), own)), _) => return Access::Own(own),
        (_, Ok(_)) => return Access::Borrowed(borrowed),
        (_, Err(error)) => error,
    };
    match opaque::map(&borrowed) {
        Ok(mapped) => Access::MappableOnly(mapped),
        Err(unmappable) => Access::Refused(format!("pread: {}, mmap: {}", plain(&unreadable), plain(&unmappable))),
    }
}

/// The error without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
