//! Flushes that reach the disk: told by how many pages of the image the kernel holds dirty (cachestat(2), Linux 6.5).
#![expect(unsafe_code, reason = "no library has this system call yet")]

use std::os::fd::AsRawFd;

use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::*;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::block::Block;

use crate::block::{FLUSH, Request, disk};
use crate::guest::Guest;

/// Linux `include/uapi/asm-generic/unistd.h`.
const SYS_CACHESTAT: libc::c_long = 451;

/// How many pages of a file are not on the disk; `None` if the kernel doesn't say.
fn unwritten(file: &impl AsRawFd) -> Option<u64> {
    let (range, mut counts) = ([0u64, 0], [0u64; 5]);
    // SAFETY: two numbers that are read and five that are written (Linux `include/uapi/linux/mman.h`, `cachestat`).
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0) };
    // Dirty, and being written.
    (result == 0).then_some(counts[1] + counts[2])
}

/// An image on a file system that writes to a disk; `None`, with a line that says so, if there is none.
fn image() -> Option<NamedTempFile> {
    let image = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(image.path(), vec![1; 1 << 20]).unwrap();
    image.as_file().sync_all().unwrap();
    if unwritten(image.as_file()) == Some(0) {
        return Some(image);
    }
    use std::io::Write;
    writeln!(std::io::stderr(), "skipped: this kernel or file system does not tell what is on the disk").unwrap();
    None
}

/// Writes through a disk. Returns how many pages were not on the disk when the write was answered, and after a flush.
fn write_and_flush(image: &NamedTempFile, features: u64) -> (u64, u64) {
    let guest = Guest::new();
    let mut device = Block::new(&disk(image.path())).unwrap();
    let queue = guest.queue(0, 128);
    device.activate(guest.activation(features, &[&queue])).unwrap();
    let data = guest.pages(16);
    guest.write(data, &[7; 65536]);
    let write = Request::new(&guest, VIRTIO_BLK_T_OUT, 0);
    assert_eq!(write.make(&guest, &queue, &[(data, 65536, false)]), VIRTIO_BLK_S_OK);
    let written = unwritten(image.as_file()).unwrap();
    let flush = Request::new(&guest, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(flush.make(&guest, &queue, &[]), VIRTIO_BLK_S_OK);
    (written, unwritten(image.as_file()).unwrap())
}

#[test]
fn a_flush_puts_what_was_written_on_the_disk() {
    let Some(image) = image() else { return };
    // The kernel may write by itself, but not each time just then.
    let dirty = (0..50).any(|_| {
        let (written, flushed) = write_and_flush(&image, FLUSH);
        assert_eq!(flushed, 0, "a flush leaves pages that are not on the disk");
        written > 0
    });
    assert!(dirty, "writes were on the disk before they were flushed");
}

#[test]
fn a_driver_that_knows_no_flush_needs_none() {
    let Some(image) = image() else { return };
    for _ in 0..20 {
        assert_eq!(write_and_flush(&image, 0).0, 0, "a write was answered that is not on the disk");
    }
}
