//! A raw image: a regular file or a block device of the host's, open and locked.
//!
//! Guarantees:
//! * Only regular files and block devices are images; to open anything else has no effect on it, and is an error.
//! * An image has whole sectors: bytes behind the last whole one are not part of the disk, and a line in the log says so.
//! * What was written is on the disk once [`Image::flush`] has returned.

#![expect(unsafe_code, reason = "block devices are discarded and zeroed by ioctl")]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};

use rustix::fs::FallocateFlags;

use super::lock::lock;
use super::unsupported;
use crate::config::DiskConfig;
use crate::{Error, Result};

/// Bytes of a sector, whatever the size of a disk's blocks (virtio 1.3, 5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of the serial number that the guest sees.
pub const SERIAL_BYTES: usize = 20;

/// Linux `include/uapi/linux/fs.h`: `_IO(0x12, 119)` and `_IO(0x12, 127)`.
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// How many zeros are written at a time where a file system can't make them otherwise.
const ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A raw image.
#[derive(Debug)]
pub struct Image {
    file: File,
    sectors: u64,
    block_size: u32,
    is_device: bool,
    readonly: bool,
    serial: [u8; SERIAL_BYTES],
}

impl Image {
    /// Opens and locks it.
    ///
    /// # Errors
    /// An image that can't be opened, is none, has no sector, or is in use; a serial number that is too long.
    pub fn open(config: &DiskConfig) -> Result<Self> {
        let path = &config.path;
        let failed =
            |operation| move |source| Error::File { operation, role: "disk image", path: path.clone(), source };
        let bad = |problem: String| Error::Device { device: format!("disk image {}", config.path.display()), problem };

        let serial = config.serial.as_deref().unwrap_or_default().as_bytes();
        let mut padded = [0; SERIAL_BYTES];
        match padded.get_mut(..serial.len()) {
            Some(start) => start.copy_from_slice(serial),
            None => return Err(bad(format!("its serial number has more than {SERIAL_BYTES} bytes: shorten it"))),
        }
        if config.queues == 0 {
            return Err(bad("it has no queues: give it one for each processor, or one".into()));
        }
        if !config.queue_size.is_power_of_two() || !(4..=1024).contains(&config.queue_size) {
            return Err(bad("its queues need a power of two of entries, from 4 to 1024".into()));
        }

        // Without waiting for whoever writes to a pipe.
        let mut options = OpenOptions::new();
        options.read(true).write(!config.readonly).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(failed("open"))?;
        let kind = file.metadata().map_err(failed("look at"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(bad("it is neither a file nor a block device: pass a raw image".into()));
        }
        if !lock(&file, !config.readonly).map_err(failed("lock"))? {
            let remedy = if config.readonly {
                "end the program that writes to it"
            } else {
                "end the program that uses it, or make it read-only in both"
            };
            return Err(bad(format!("it is in use, and its user would not expect it to change: {remedy}")));
        }
        let size = file.seek(SeekFrom::End(0)).map_err(failed("size"))?;
        if size < SECTOR {
            return Err(bad(format!(
                "it has {size} bytes, and a disk has at least one sector of {SECTOR}: enlarge it"
            )));
        }
        if !size.is_multiple_of(SECTOR) {
            let rest = size % SECTOR;
            tracing::warn!("the last {rest} bytes of {} are no sector: the guest does not see them", path.display());
        }
        let is_device = kind.is_block_device();
        let block_size =
            if is_device { rustix::fs::ioctl_blksszget(&file).map_err(|e| failed("size")(e.into()))? } else { 512 };
        Ok(Self { file, sectors: size / SECTOR, block_size, is_device, readonly: config.readonly, serial: padded })
    }

    /// Sectors of the disk.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Bytes of a block, the least that is written at a time.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether it may not be written.
    pub fn is_readonly(&self) -> bool {
        self.readonly
    }

    /// The serial number, padded with zeros.
    pub fn serial(&self) -> &[u8; SERIAL_BYTES] {
        &self.serial
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where these bytes begin in the image; `None` if they are not whole sectors of it.
    pub fn place(&self, sector: u64, size: u64) -> Option<u64> {
        let end = sector.checked_add(size / SECTOR)?;
        (size.is_multiple_of(SECTOR) && end <= self.sectors).then(|| sector * SECTOR)
    }

    /// Puts what was written on the disk.
    ///
    /// # Errors
    /// The system's: it may not be there.
    pub fn flush(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    /// Gives up these bytes: whatever they hold afterwards.
    ///
    /// # Errors
    /// The system's, [`unsupported`] where the file system can't.
    pub fn discard(&self, offset: u64, size: u64) -> io::Result<()> {
        if self.is_device {
            return self.block_ioctl(BLKDISCARD, offset, size);
        }
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, size)?)
    }

    /// Makes these bytes zeros, which need no room on the disk if `unmap`.
    ///
    /// # Errors
    /// The system's.
    pub fn zero(&self, offset: u64, size: u64, unmap: bool) -> io::Result<()> {
        if self.is_device {
            return self.block_ioctl(BLKZEROOUT, offset, size);
        }
        let kind = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match rustix::fs::fallocate(&self.file, kind | FallocateFlags::KEEP_SIZE, offset, size).map_err(io::Error::from)
        {
            Err(error) if unsupported(&error) => self.write_zeros(offset, size),
            result => result,
        }
    }

    fn write_zeros(&self, mut offset: u64, mut size: u64) -> io::Result<()> {
        while size > 0 {
            let part = size.min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..part as usize], offset)?;
            (offset, size) = (offset + part, size - part);
        }
        Ok(())
    }

    fn block_ioctl(&self, request: libc::Ioctl, offset: u64, size: u64) -> io::Result<()> {
        let range = [offset, size];
        // SAFETY: these requests read two numbers, which live as long as the call takes.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request, range.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
