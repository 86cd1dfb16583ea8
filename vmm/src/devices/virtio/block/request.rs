//! One request of a block device's (virtio 1.3, 5.2.6): header, data, and a byte for the status.
//!
//! The driver may split these into descriptors in any way. The status is the last byte that the device may write; if that
//! can be reached, it says how the request ended, whatever is wrong with the rest.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::image::{Image, SECTOR, SERIAL_BYTES};
use super::{Counters, MAX_DISCARD_SECTORS, unsupported};
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::ring::{Chain, Ranges};
use crate::memory::guarded::DeviceView;

/// The most bytes of one buffer that a driver is to put into a request.
pub const MAX_SEGMENT: u32 = 128 << 10;
/// The most buffers that a driver is to put into a request.
pub const MAX_SEGMENTS: u32 = 254;

/// The most bytes of data of a request, whatever its buffers.
pub const MAX_BYTES: u64 = MAX_SEGMENT as u64 * MAX_SEGMENTS as u64;

/// The most ranges of a discard.
pub const MAX_RANGES: u32 = 16;

/// The most sectors that are zeroed by one request: 32 MiB, since they may have to be written.
pub const MAX_ZEROED_SECTORS: u32 = 64 << 10;

/// Bytes of a request's header, and of a range of a discard.
const HEADER: u32 = 16;
const RANGE: u32 = 16;

/// Why a request fails.
#[derive(Debug)]
enum Failure {
    /// It names memory that is not shared, which was reported already.
    Refused,
    /// It makes no sense, or there is no such place on the disk.
    Bad,
    /// There is no such request.
    Unsupported,
    /// The host's disk.
    Disk(io::Error),
}

impl From<vm_memory::GuestMemoryError> for Failure {
    fn from(_: vm_memory::GuestMemoryError) -> Self {
        Self::Refused
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if unsupported(&error) { Self::Unsupported } else { Self::Disk(error) }
    }
}

/// What executes requests.
pub(super) struct Executor {
    pub image: Arc<Image>,
    pub counters: Arc<Counters>,
    /// Whether each write is to be on the disk when it is answered.
    pub write_through: bool,
}

impl Executor {
    /// Executes a request, and says how many bytes of it were written. Does nothing if the driver can't be told the status.
    ///
    /// The status is let go of while the request takes its time, so that it holds up no conversion: one that comes in between
    /// leaves the driver without its status.
    pub fn execute(&self, view: &DeviceView, mut chain: Chain) -> u32 {
        let status_byte = chain.writable.take_last_byte().ok_or(Failure::Bad);
        let status_byte = match status_byte.and_then(|byte| byte.guard(view).map(|_| byte).map_err(Failure::from)) {
            Ok(byte) => byte,
            Err(failure) => {
                self.count(&failure);
                return 0;
            }
        };
        let (status, data) = match self.carry_out(view, &mut chain) {
            Ok(data) => (VIRTIO_BLK_S_OK, data),
            Err(failure) => {
                self.count(&failure);
                let unsupported = matches!(failure, Failure::Unsupported);
                (if unsupported { VIRTIO_BLK_S_UNSUPP } else { VIRTIO_BLK_S_IOERR }, 0)
            }
        };
        match status_byte.guard(view) {
            Ok(mut byte) => {
                byte.copy_in(&[status as u8]);
                data + 1
            }
            Err(error) => {
                self.count(&error.into());
                0
            }
        }
    }

    fn count(&self, failure: &Failure) {
        self.counters.failed.add(1);
        match failure {
            Failure::Refused => self.counters.refused.add(1),
            Failure::Disk(error) => {
                if self.counters.disk_errors.get() == 0 {
                    tracing::warn!("a request to a disk failed, and others may: {error}");
                }
                self.counters.disk_errors.add(1);
            }
            Failure::Bad | Failure::Unsupported => {}
        }
    }

    /// Returns how many bytes of data were written to the guest.
    fn carry_out(&self, view: &DeviceView, chain: &mut Chain) -> Result<u32, Failure> {
        let mut header = [0; HEADER as usize];
        let start = chain.readable.take_first(HEADER);
        if !chain.whole || start.size() < HEADER.into() {
            return Err(Failure::Bad);
        }
        start.guard(view)?.copy_out(&mut header);
        let kind = u32::from_le_bytes(part(&header, 0));
        let sector = u64::from_le_bytes(part(&header, 8));
        match kind {
            VIRTIO_BLK_T_IN => self.read(view, sector, &chain.writable),
            VIRTIO_BLK_T_OUT => self.write(view, sector, &chain.readable),
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => self.serial(view, &chain.writable),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(view, kind, &chain.readable),
            _ => Err(Failure::Unsupported),
        }
    }

    /// Guards the data of a request and finds its place on the disk.
    fn data<'v>(&self, view: &'v DeviceView, sector: u64, data: &Ranges) -> Result<(Buffers<'v>, u64, u64), Failure> {
        let size = data.size();
        let offset = self.image.place(sector, size).filter(|_| size <= MAX_BYTES).ok_or(Failure::Bad)?;
        Ok((data.guard(view)?, offset, size))
    }

    fn read(&self, view: &DeviceView, sector: u64, data: &Ranges) -> Result<u32, Failure> {
        let (buffers, offset, size) = self.data(view, sector, data)?;
        buffers.read_all_at(self.image.file(), offset)?;
        self.counters.reads.add(1);
        self.counters.read_bytes.add(size);
        // It fits: there are at most MAX_BYTES.
        Ok(size as u32)
    }

    fn write(&self, view: &DeviceView, sector: u64, data: &Ranges) -> Result<u32, Failure> {
        self.check_writable()?;
        let (buffers, offset, size) = self.data(view, sector, data)?;
        buffers.write_all_at(self.image.file(), offset)?;
        self.through()?;
        self.counters.writes.add(1);
        self.counters.written_bytes.add(size);
        Ok(0)
    }

    fn flush(&self) -> Result<u32, Failure> {
        self.image.flush()?;
        self.counters.flushes.add(1);
        Ok(0)
    }

    fn serial(&self, view: &DeviceView, data: &Ranges) -> Result<u32, Failure> {
        if data.size() < SERIAL_BYTES as u64 {
            return Err(Failure::Bad);
        }
        Ok(data.clone().take_first(SERIAL_BYTES as u32).guard(view)?.copy_in(self.image.serial()) as u32)
    }

    /// Discards or zeroes ranges: all of them are checked before any is touched.
    fn ranges(&self, view: &DeviceView, kind: u32, data: &Ranges) -> Result<u32, Failure> {
        self.check_writable()?;
        let size = data.size();
        let fits = size > 0 && size <= (MAX_RANGES * RANGE).into() && size.is_multiple_of(RANGE.into());
        if !fits {
            return Err(Failure::Bad);
        }
        let mut buffers = data.guard(view)?;
        let mut ranges = Vec::new();
        let mut bytes = [0; RANGE as usize];
        while buffers.copy_out(&mut bytes) == bytes.len() {
            ranges.push(self.range(kind, &bytes)?);
        }
        drop(buffers);
        let total: u64 = ranges.iter().map(|(_, size, _)| size).sum();
        if kind == VIRTIO_BLK_T_WRITE_ZEROES && total > u64::from(MAX_ZEROED_SECTORS) * SECTOR {
            return Err(Failure::Bad);
        }
        for (offset, size, unmap) in ranges.into_iter().filter(|(_, size, _)| *size > 0) {
            match kind {
                VIRTIO_BLK_T_DISCARD => self.image.discard(offset, size)?,
                _ => self.image.zero(offset, size, unmap)?,
            }
        }
        self.through()?;
        self.counters.discards.add(1);
        Ok(0)
    }

    /// Offset, size and whether to unmap, of a range as the driver gives it (virtio 1.3, 5.2.6, `virtio_blk_discard_write_zeroes`).
    fn range(&self, kind: u32, bytes: &[u8; RANGE as usize]) -> Result<(u64, u64, bool), Failure> {
        let sector = u64::from_le_bytes(part(bytes, 0));
        let count = u32::from_le_bytes(part(bytes, 8));
        let flags = u32::from_le_bytes(part(bytes, 12));
        let known = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if flags & !known != 0 {
            return Err(Failure::Unsupported);
        }
        let size = u64::from(count) * SECTOR;
        let offset = self.image.place(sector, size).filter(|_| count <= MAX_DISCARD_SECTORS).ok_or(Failure::Bad)?;
        Ok((offset, size, flags != 0))
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.image.is_readonly() { Err(Failure::Bad) } else { Ok(()) }
    }

    fn through(&self) -> Result<(), Failure> {
        if self.write_through { Ok(self.image.flush()?) } else { Ok(()) }
    }
}

/// Bytes of a header from `offset` on.
fn part<const N: usize>(bytes: &[u8; 16], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[offset + index])
}
