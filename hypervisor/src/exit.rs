//! Why a vCPU stopped, as typed values with typed replies.
//!
//! An exit that wants an answer lends its reply for as long as the exit lives. Before an exit is handed out, the
//! backend writes the refusal into the place where the answer goes; a reply only overwrites it. So an exit that is
//! dropped, on whatever path, refuses: an MSR access ends in #GP, a conversion request in an error, a read of nothing
//! in all ones.

use std::io;

use crate::{Error, Result};

/// Why [`crate::Vcpu::run`] came back.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads a port; fill `data`, or leave all ones.
    IoIn {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes for each access.
        data: &'a mut [u8],
    },
    /// The guest writes a port.
    IoOut {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes for each access.
        data: &'a [u8],
    },
    /// The guest reads an address without memory; fill `data`, or leave all ones.
    MmioRead {
        /// Guest physical address.
        gpa: u64,
        /// 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes an address without memory.
    MmioWrite {
        /// Guest physical address.
        gpa: u64,
        /// 1 to 8 bytes.
        data: &'a [u8],
    },
    /// The guest reads an MSR that the VMM filters.
    MsrRead(MsrRead<'a>),
    /// The guest writes an MSR that the VMM filters. It gets #GP unless [`crate::Vcpu::accept_msr_write`] follows: what
    /// comes of the write often depends on another call to the vCPU, which a borrowed reply would forbid.
    MsrWrite {
        /// Which MSR.
        index: u32,
        /// What the guest writes.
        value: u64,
    },
    /// An access contradicts the attribute of its page, or found no memory. Run again to retry it.
    MemoryFault(MemoryFault),
    /// The guest announces a conversion.
    MapGpaRange(MapGpaRange<'a>),
    /// The guest halted with interrupts handled by the VMM.
    Halt,
    /// Triple fault.
    Shutdown,
    /// A signal or an immediate exit was asked for; nothing happened.
    Interrupted,
    /// The hypervisor gave up on an instruction.
    InternalError {
        /// Linux `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// The processor refused the guest's state.
    FailedEntry {
        /// The processor's reason.
        reason: u64,
    },
    /// A touch of memory that has no backing, at an address the kernel doesn't tell (a bare EFAULT).
    NoBacking,
    /// A machine check: the memory behind an access is broken (EHWPOISON).
    Poisoned(MemoryFault),
    /// An exit that nothing here asked for.
    Unexpected(String),
}

impl Exit<'_> {
    /// What an error of KVM_RUN on vCPU `id` means, where the kernel gave no exit with it.
    pub(crate) fn of_error(errno: i32, id: u8) -> Result<Self> {
        match errno {
            // EAGAIN: the vCPU has nothing to run yet.
            libc::EINTR | libc::EAGAIN => Ok(Exit::Interrupted),
            libc::EFAULT => Ok(Exit::NoBacking),
            number => Err(Error::Failed {
                operation: "run",
                subject: format!("vCPU {id}"),
                source: io::Error::from_raw_os_error(number),
            }),
        }
    }
}

/// An access that contradicts the attribute of its page (KVM_EXIT_MEMORY_FAULT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFault {
    /// Guest physical address of the page.
    pub gpa: u64,
    /// Size in bytes; KVM always says one page.
    pub size: u64,
    /// Whether the access was a private one.
    pub private: bool,
}

/// A request to convert a range (KVM_HC_MAP_GPA_RANGE), every bit as the guest wrote it.
#[derive(Debug)]
pub struct MapGpaRange<'a> {
    /// First guest physical address.
    pub gpa: u64,
    /// Number of 4-KiB pages.
    pub pages: u64,
    /// Size hint in bits 3:0, "private" in bit 4, anything in the rest.
    pub attributes: u64,
    pub(crate) ret: &'a mut u64,
    pub(crate) plain: bool,
}

/// The answer to a [`MapGpaRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapGpaRangeReply {
    /// All of it has the state asked for.
    Done,
    /// Refused; nothing changed.
    Invalid,
    /// Nothing wrong, but not now. Guests of TDX retry; all others see a refusal.
    Again,
}

impl<'a> MapGpaRange<'a> {
    /// Takes the return value's place and writes the refusal into it.
    ///
    /// `plain` VM types hand the value to the guest as it is and KVM's own refusal there is `-EINVAL`; SNP and TDX take
    /// 0, EINVAL or EAGAIN and nothing else (Linux `arch/x86/kvm/svm/sev.c`, `vmx/tdx.c`, `x86.c`).
    pub fn new(gpa: u64, pages: u64, attributes: u64, plain: bool, ret: &'a mut u64) -> Self {
        *ret = encode(MapGpaRangeReply::Invalid, plain);
        Self { gpa, pages, attributes, ret, plain }
    }

    /// Answers.
    pub fn reply(self, answer: MapGpaRangeReply) {
        *self.ret = encode(answer, self.plain);
    }
}

fn encode(answer: MapGpaRangeReply, plain: bool) -> u64 {
    let errno = match answer {
        MapGpaRangeReply::Done => return 0,
        MapGpaRangeReply::Again if !plain => libc::EAGAIN,
        MapGpaRangeReply::Invalid | MapGpaRangeReply::Again => libc::EINVAL,
    };
    let value = i64::from(errno);
    (if plain { -value } else { value }) as u64
}

/// A filtered read of an MSR. Dropped, it is refused with #GP.
#[derive(Debug)]
pub struct MsrRead<'a> {
    /// Which MSR.
    pub index: u32,
    pub(crate) data: &'a mut u64,
    pub(crate) error: &'a mut u8,
}

impl<'a> MsrRead<'a> {
    /// Takes the answer's place and writes the refusal into it.
    pub fn new(index: u32, data: &'a mut u64, error: &'a mut u8) -> Self {
        *error = 1;
        Self { index, data, error }
    }

    /// Lets the guest read `value`.
    pub fn reply(self, value: u64) {
        *self.data = value;
        *self.error = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_reply_is_a_refusal() {
        let (mut ret, mut data, mut error) = (0, 0, 0);
        let _ = MapGpaRange::new(0, 1, 0, true, &mut ret);
        assert_eq!(ret as i64, -22);
        let _ = MapGpaRange::new(0, 1, 0, false, &mut ret);
        assert_eq!(ret, 22);
        let _ = MsrRead::new(1, &mut data, &mut error);
        assert_eq!(error, 1);
    }

    #[test]
    fn replies_are_what_each_vm_type_takes() {
        let answer = |plain, reply| {
            let mut ret = 99;
            MapGpaRange::new(0, 1, 0, plain, &mut ret).reply(reply);
            ret as i64
        };
        assert_eq!(answer(true, MapGpaRangeReply::Done), 0);
        assert_eq!(answer(true, MapGpaRangeReply::Invalid), -22);
        assert_eq!(answer(true, MapGpaRangeReply::Again), -22);
        assert_eq!(answer(false, MapGpaRangeReply::Done), 0);
        assert_eq!(answer(false, MapGpaRangeReply::Invalid), 22);
        assert_eq!(answer(false, MapGpaRangeReply::Again), 11);
    }
}
