//! The two backings of guest memory, and the regions that put them before a guest.
//!
//! [`SharedMemory`] is memory that the VMM maps: what the guest shares, devices reach through it. It is a memfd where pages
//! are converted, and anonymous where they never are: of that the host makes huge pages. [`GuestMemfd`] is
//! memory of the kernel's that no process can map, read or write. A [`Region`] is one KVM memory slot: a range of guest
//! addresses with a slice of either or both.
//!
//! Both give memory back by [`Backing::discard`]: the pages of a discarded range read as zeros afterwards and cost
//! nothing. The mapping of a [`SharedMemory`] stays in place for as long as any region or user holds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::Errno;
use rustix::mm::Advice;
use vm_memory::{FileOffset, MmapRegion};

use crate::{ByteSize, Error, GpaRange, PAGE_SIZE, Result};

/// Guest memory that the VMM maps: a memfd and its mapping, or an anonymous mapping.
#[derive(Debug)]
pub struct SharedMemory {
    /// None of an anonymous one.
    file: Option<Arc<std::fs::File>>,
    // Lies in the addresses below, so it drops first.
    mapping: MmapRegion,
    /// What an anonymous mapping is a part of.
    _addresses: Option<MmapRegion>,
}

/// Size of the huge pages that the host makes of anonymous memory, on x86-64.
const HUGE_PAGE: usize = 2 << 20;

impl SharedMemory {
    /// Creates `size` bytes of zeroed memory that costs nothing until it is touched, maps them, and keeps them out of
    /// core dumps. `name` shows in `/proc/PID/maps` as `/memfd:NAME`.
    ///
    /// # Errors
    /// A size that is zero, unaligned or beyond what the process may map.
    pub fn new(name: &str, size: u64) -> Result<Self> {
        let failed = |operation, source: io::Error| Error::Failed {
            operation,
            subject: format!("{} of shared guest memory", ByteSize(size)),
            source,
        };
        GpaRange::new(0, size)?;
        let length = usize::try_from(size).map_err(|_| failed("map", io::ErrorKind::OutOfMemory.into()))?;
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map_err(|e| failed("create", e.into()))?;
        rustix::fs::ftruncate(&file, size).map_err(|e| failed("size", e.into()))?;
        let file = Arc::new(std::fs::File::from(file));
        let mapping = MmapRegion::build(
            Some(FileOffset::from_arc(file.clone(), 0)),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(|e| failed("map", io::Error::other(e)))?;
        advise(&mapping, Advice::LinuxDontDump).map_err(|e| failed("keep out of core dumps", e))?;
        Ok(Self { file: Some(file), mapping, _addresses: None })
    }

    /// Like [`Self::new`], but anonymous: the host may put huge pages behind it, which spares the guest most of its page
    /// faults, and takes back single pages of them all the same. A child process does not get it.
    ///
    /// # Errors
    /// As [`Self::new`].
    #[expect(unsafe_code, reason = "MmapRegion can't be asked for an alignment")]
    pub fn anonymous(size: u64) -> Result<Self> {
        let failed = |operation, source: io::Error| Error::Failed {
            operation,
            subject: format!("{} of anonymous guest memory", ByteSize(size)),
            source,
        };
        GpaRange::new(0, size)?;
        let too_large = || failed("map", io::ErrorKind::OutOfMemory.into());
        let length = usize::try_from(size).map_err(|_| too_large())?;
        // Guest and host addresses must lie at the same place in a huge page.
        let room = length.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let addresses = MmapRegion::build(None, room, access, flags | libc::MAP_NORESERVE)
            .map_err(|e| failed("map", io::Error::other(e)))?;
        let aligned = addresses.as_ptr().wrapping_add(addresses.as_ptr().align_offset(HUGE_PAGE));
        // SAFETY: `aligned` is less than a huge page behind the start of `addresses`, so these bytes lie in them; they are
        // mapped as said, and the structure keeps both, of which only `addresses` unmaps anything.
        let mapping = unsafe { MmapRegion::build_raw(aligned, length, access, flags) }
            .map_err(|e| failed("map", io::Error::other(e)))?;
        advise(&mapping, Advice::LinuxDontDump).map_err(|e| failed("keep out of core dumps", e))?;
        advise(&mapping, Advice::LinuxDontFork).map_err(|e| failed("keep from children", e))?;
        // A host without huge pages has small ones.
        let _ = advise(&mapping, Advice::LinuxHugepage);
        Ok(Self { file: None, mapping, _addresses: Some(addresses) })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.mapping.size() as u64
    }

    /// Size in bytes of the pages in which the host holds it, and takes it back whole: what `fstat` gives as the preferred
    /// block size (Linux `mm/shmem.c`, `fs/hugetlbfs/inode.c`). 4096 where there are no huge pages, and of anonymous memory.
    pub fn huge_page_size(&self) -> u64 {
        let Some(file) = &self.file else { return PAGE_SIZE };
        rustix::fs::fstat(&**file).map_or(PAGE_SIZE, |stat| (stat.st_blksize as u64).max(PAGE_SIZE))
    }

    /// The mapping: volatile access to the bytes, for those who know that they are shared.
    pub fn mapping(&self) -> &MmapRegion {
        &self.mapping
    }
}

/// Gives advice about all of a mapping that changes no contents.
#[expect(unsafe_code, reason = "madvise takes an address; the mapping is this module's own")]
fn advise(mapping: &MmapRegion, advice: Advice) -> io::Result<()> {
    // SAFETY: the address and length are those of a live mapping, and what is advised changes no contents.
    unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), mapping.size(), advice) }.map_err(io::Error::from)
}

/// Gives the memory of whole pages of an anonymous mapping back.
#[expect(unsafe_code, reason = "madvise takes an address; the mapping is this module's own")]
fn discard_anonymous(mapping: &MmapRegion, offset: u64, size: u64) -> rustix::io::Result<()> {
    let (offset, size) = (usize::try_from(offset), usize::try_from(size));
    let (Ok(offset), Ok(size)) = (offset, size) else { return Err(Errno::INVAL) };
    if size == 0 || offset.checked_add(size).is_none_or(|end| end > mapping.size()) {
        return Err(Errno::INVAL);
    }
    let start = mapping.as_ptr().wrapping_add(offset);
    // SAFETY: the bytes lie in a live mapping of memory that is a guest's: nobody has references into it, and whoever reads it
    // expects that it changes.
    unsafe { rustix::mm::madvise(start.cast(), size, Advice::LinuxDontNeed) }
}

/// Guest memory that no process can map: a guest_memfd of one VM.
///
/// The descriptor keeps the memory alive; the VM does not keep the descriptor alive, so regions hold it.
#[derive(Debug)]
pub struct GuestMemfd {
    file: OwnedFd,
    size: u64,
}

impl GuestMemfd {
    /// Takes over a guest_memfd of `size` bytes, as KVM_CREATE_GUEST_MEMFD returns it, and makes it close on exec, which the
    /// kernel does not. For implementations of [`crate::Vm`] elsewhere; others have [`crate::Vm::create_guest_memfd`]. That no
    /// process can map it, who calls this promises: it isn't asked.
    ///
    /// # Errors
    /// The descriptor does not take the flag.
    pub fn new(file: OwnedFd, size: u64) -> io::Result<Self> {
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Self { file, size })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsFd for GuestMemfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One of the two backings.
#[derive(Debug, Clone)]
pub enum Backing {
    /// What the page is in while it is shared.
    Shared(Arc<SharedMemory>),
    /// What the page is in while it is private.
    Private(Arc<GuestMemfd>),
}

impl Backing {
    /// Gives the memory of `size` bytes at `offset` back to the host.
    ///
    /// # Errors
    /// Bytes that are not whole pages; whatever else `fallocate(PUNCH_HOLE)` says, or `madvise` of anonymous memory.
    pub fn discard(&self, offset: u64, size: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let aligned = offset.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE);
        let result = match self {
            // A guest_memfd refuses these bytes, while a memfd would zero them.
            _ if !aligned => Err(Errno::INVAL),
            Self::Shared(memory) if memory.file.is_none() => discard_anonymous(&memory.mapping, offset, size),
            _ => self.file().ok_or(Errno::BADF).and_then(|file| rustix::fs::fallocate(file, flags, offset, size)),
        };
        result.map_err(|errno| self.discard_failed(offset, size, errno.into()))
    }

    pub(crate) fn discard_failed(&self, offset: u64, size: u64, source: io::Error) -> Error {
        let name = match self {
            Self::Shared(_) => "shared",
            Self::Private(_) => "private",
        };
        let subject = format!("{size:#x} bytes at {offset:#x} of {name} guest memory");
        Error::Failed { operation: "discard", subject, source }
    }

    /// The file behind it; anonymous memory has none.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Shared(memory) => memory.file.as_ref().map(|file| file.as_fd()),
            Self::Private(memory) => Some(memory.file.as_fd()),
        }
    }
}

/// Addresses of this process that hold nothing and never will: what a region without shared memory shows KVM in place of
/// a mapping, so that KVM's own accesses fail instead of reaching whatever lies at some other address.
#[derive(Debug)]
pub(crate) struct Reservation(MmapRegion);

impl Reservation {
    /// Reserves `size` bytes of addresses. Costs no memory.
    pub(crate) fn new(size: u64) -> io::Result<Self> {
        let length = usize::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        MmapRegion::build(None, length, libc::PROT_NONE, flags).map(Self).map_err(io::Error::other)
    }

    /// The first address.
    pub(crate) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

/// A slice of a backing: the backing and the offset of the first byte in it.
#[derive(Debug)]
pub struct Slice<T> {
    /// The backing.
    pub backing: Arc<T>,
    /// Offset of the first byte, page-aligned.
    pub offset: u64,
}

// Not derived: that would ask for a backing that can be cloned.
impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        Self { backing: self.backing.clone(), offset: self.offset }
    }
}

/// The most pages that one memory slot may have (Linux `include/linux/kvm_host.h`, `KVM_MEM_MAX_NR_PAGES`).
const MAX_REGION_PAGES: u64 = (1 << 31) - 1;

/// One memory slot: a range of guest addresses and what is behind it.
#[derive(Debug, Clone)]
pub struct Region {
    /// Where the guest sees it.
    pub range: GpaRange,
    /// What is behind its shared pages. Without it, a touch of a shared page is an error.
    pub shared: Option<Slice<SharedMemory>>,
    /// What is behind its private pages. Without it, a touch of a private page exits with [`crate::MemoryFault`].
    pub private: Option<Slice<GuestMemfd>>,
}

impl Region {
    /// Checks that it fits a memory slot, and that both slices lie inside their backings and on page borders.
    ///
    /// # Errors
    /// Too many pages, or the first slice that doesn't.
    pub fn check(&self) -> Result<()> {
        if self.range.pages() > MAX_REGION_PAGES {
            return Err(Error::RegionTooLarge { range: self.range, limit: MAX_REGION_PAGES });
        }
        let slices = [
            self.shared.as_ref().map(|slice| (slice.offset, slice.backing.size())),
            self.private.as_ref().map(|slice| (slice.offset, slice.backing.size())),
        ];
        for (offset, size) in slices.into_iter().flatten() {
            let end = u128::from(offset) + u128::from(self.range.len());
            if end > u128::from(size) || !offset.is_multiple_of(PAGE_SIZE) {
                return Err(Error::OutsideBacking { range: self.range, offset, end, size });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, VolatileMemory};

    #[test]
    fn discarded_shared_memory_reads_zero_and_the_rest_is_kept() {
        discarded_reads_zero_and_the_rest_is_kept(SharedMemory::new("test", 3 * PAGE_SIZE).unwrap());
        discarded_reads_zero_and_the_rest_is_kept(SharedMemory::anonymous(3 * PAGE_SIZE).unwrap());
    }

    fn discarded_reads_zero_and_the_rest_is_kept(memory: SharedMemory) {
        let memory = Arc::new(memory);
        let all = memory.mapping().as_volatile_slice();
        all.write_slice(&[7; 3 * PAGE_SIZE as usize], 0).unwrap();
        Backing::Shared(memory.clone()).discard(PAGE_SIZE, PAGE_SIZE).unwrap();
        let mut bytes = vec![0u8; 3 * PAGE_SIZE as usize];
        all.read_slice(&mut bytes, 0).unwrap();
        let expected = |page: usize| if page == 1 { 0 } else { 7 };
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == expected(i / PAGE_SIZE as usize)));
    }

    #[test]
    fn bad_sizes_are_errors_that_name_the_size() {
        for size in [0, 1, 4097, u64::MAX, 1 << 62] {
            let error = SharedMemory::new("test", size).unwrap_err();
            let chain =
                format!("{error} {}", std::error::Error::source(&error).map_or(String::new(), |e| e.to_string()));
            assert!(chain.contains(&ByteSize(size).to_string()) || chain.contains("empty"), "{chain}");
        }
    }

    #[test]
    fn anonymous_memory_has_room_for_huge_pages_and_refuses_what_is_not_its_own() {
        let size = 3 * HUGE_PAGE as u64 + PAGE_SIZE;
        let memory = Arc::new(SharedMemory::anonymous(size).unwrap());
        assert_eq!((memory.size(), memory.mapping().as_ptr() as usize % HUGE_PAGE), (size, 0));
        // The last byte is there, too.
        memory.mapping().as_volatile_slice().write_obj(1u8, size as usize - 1).unwrap();
        let backing = Backing::Shared(memory);
        backing.discard(size - PAGE_SIZE, PAGE_SIZE).unwrap();
        for (offset, bytes) in
            [(0, 0), (0, 1), (1, PAGE_SIZE), (size, PAGE_SIZE), (PAGE_SIZE, size), (!0xfff, PAGE_SIZE)]
        {
            assert!(backing.discard(offset, bytes).is_err(), "{offset:#x} {bytes:#x}");
        }
        for size in [0, 1, 4097, u64::MAX, 1 << 62] {
            assert!(SharedMemory::anonymous(size).is_err(), "{size:#x}");
        }
    }

    #[test]
    fn a_region_of_more_pages_than_a_slot_takes_is_refused() {
        let region =
            |pages| Region { range: GpaRange::new(0, pages * PAGE_SIZE).unwrap(), shared: None, private: None };
        assert!(region(MAX_REGION_PAGES).check().is_ok());
        let error = region(MAX_REGION_PAGES + 1).check().unwrap_err();
        assert!(error.to_string().contains("2147483647 pages"), "{error}");
    }

    #[test]
    fn a_region_outside_its_backing_is_refused() {
        let memory = Arc::new(SharedMemory::new("test", 2 * PAGE_SIZE).unwrap());
        let region = |offset| Region {
            range: GpaRange::new(0, 2 * PAGE_SIZE).unwrap(),
            shared: Some(Slice { backing: memory.clone(), offset }),
            private: None,
        };
        assert!(region(0).check().is_ok());
        for offset in [1, PAGE_SIZE, u64::MAX - PAGE_SIZE + 1] {
            assert!(region(offset).check().is_err(), "{offset:#x}");
        }
    }
}
