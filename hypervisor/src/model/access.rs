//! The action of a vCPU in progress, and its way through guest memory: a page at a time, each under the VM's lock.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

use super::hypercall::Request;
use super::memory::Miss;
use super::privateness::Address;
use super::script::{Action, Outcome};
use super::vm::Machine;
use crate::{MemoryFault, PAGE_SIZE};

/// One access to where no memory is takes at most so many bytes.
const MMIO_BYTES: usize = 8;

/// Why a run ends. What the exit lends is in the vCPU by then.
#[derive(Debug)]
pub(super) enum Stop {
    Halt,
    Fault(MemoryFault),
    NoBacking,
    Emulation,
    MmioRead(u64),
    MmioWrite(u64),
    Port(u16),
    MapGpaRange([u64; 3]),
    MsrRead(u32),
    MsrWrite { index: u32, value: u64 },
}

/// What the VMM does between two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Mmio,
    Port,
    MapGpaRange(Request),
    MsrRead,
    MsrWrite,
}

/// The action in progress.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) action: Action,
    pub(super) left: Option<Left>,
    /// How often its script had been cleared when it began.
    pub(super) cleared: u64,
    /// Bytes of an access that are done.
    done: usize,
    /// What it read so far.
    read: Vec<u8>,
}

impl Current {
    pub(super) fn new((cleared, action): (u64, Action)) -> Self {
        Self { action, left: None, cleared, done: 0, read: Vec::new() }
    }

    /// Goes on with an access to so many bytes. Where no memory is, `data` gets what the VMM is to take or to fill.
    pub(super) fn access(
        &mut self,
        machine: &Machine,
        at: Address,
        size: usize,
        data: &mut Vec<u8>,
    ) -> Result<Outcome, Stop> {
        while self.done < size {
            let miss = {
                let memory = machine.memory();
                match memory.bytes_at(at.plus(self.done), machine.rule) {
                    Ok(bytes) => self.transfer(&bytes, size).err(),
                    Err(miss) => Some(miss),
                }
            };
            if let Some(miss) = miss {
                return Err(self.miss(miss, size, data));
            }
        }
        Ok(match self.action {
            Action::Read { .. } => Outcome::Read(std::mem::take(&mut self.read)),
            Action::Write { .. } => Outcome::Written,
            _ => Outcome::Executed,
        })
    }

    /// Reads or writes what can be of these bytes.
    fn transfer(&mut self, bytes: &VolatileSlice<'_>, size: usize) -> Result<(), Miss> {
        let count = bytes.len().min(size - self.done);
        let end = self.done + count;
        let result = match &self.action {
            Action::Write { data, .. } => store(bytes, &data[self.done..end]),
            Action::Read { .. } => {
                self.read.resize(end, 0);
                load(bytes, &mut self.read[self.done..])
            }
            _ => load(bytes, &mut [0]),
        };
        self.done = end;
        result.map_err(|_| Miss::NoBacking)
    }

    fn miss(&mut self, miss: Miss, size: usize, data: &mut Vec<u8>) -> Stop {
        let gpa = match miss {
            Miss::Fault(fault) => return Stop::Fault(fault),
            Miss::NoBacking => return Stop::NoBacking,
            Miss::NoRegion(gpa) => gpa,
        };
        let in_page = (PAGE_SIZE - gpa % PAGE_SIZE) as usize;
        let count = MMIO_BYTES.min(size - self.done).min(in_page);
        data.clear();
        let stop = match &self.action {
            Action::Read { .. } => {
                data.resize(count, 0xff);
                Stop::MmioRead(gpa)
            }
            Action::Write { data: all, .. } => {
                data.extend_from_slice(&all[self.done..self.done + count]);
                Stop::MmioWrite(gpa)
            }
            _ => return Stop::Emulation,
        };
        self.left = Some(Left::Mmio);
        stop
    }

    /// The VMM did these bytes.
    pub(super) fn take_back_mmio(&mut self, data: &[u8]) {
        if let Action::Read { .. } = self.action {
            self.read.extend_from_slice(data);
        }
        self.done += data.len();
    }
}

type Transfer = Result<(), vm_memory::VolatileMemoryError>;

/// Stores in one piece what a processor would store in one piece: 4 or 8 bytes that are aligned.
fn store(bytes: &VolatileSlice<'_>, data: &[u8]) -> Transfer {
    let whole = match *data {
        [a, b, c, d] => bytes.store(u32::from_ne_bytes([a, b, c, d]), 0, Ordering::Release),
        [a, b, c, d, e, f, g, h] => bytes.store(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), 0, Ordering::Release),
        _ => return bytes.write_slice(data, 0),
    };
    whole.or_else(|_| bytes.write_slice(data, 0))
}

/// Loads in one piece what a processor would load in one piece.
fn load(bytes: &VolatileSlice<'_>, data: &mut [u8]) -> Transfer {
    let whole = match data.len() {
        4 => bytes.load::<u32>(0, Ordering::Acquire).map(|word| data.copy_from_slice(&word.to_ne_bytes())),
        8 => bytes.load::<u64>(0, Ordering::Acquire).map(|word| data.copy_from_slice(&word.to_ne_bytes())),
        _ => return bytes.read_slice(data, 0),
    };
    whole.or_else(|_| bytes.read_slice(data, 0))
}

impl Machine {
    /// Gives memory to a page as a touch of the guest's would; the error number if it can't.
    pub(super) fn populate(&self, gpa: u64) -> Result<(), i32> {
        if !self.caps.pre_fault {
            return Err(libc::ENOTTY);
        }
        if !self.takes_pre_faults() {
            return Err(libc::EOPNOTSUPP);
        }
        let memory = self.memory();
        let address = self.rule.address(gpa, memory.attributes.get(gpa));
        match memory.bytes_at(address, self.rule) {
            Ok(bytes) => load(&bytes, &mut [0]).map_err(|_| libc::EFAULT),
            Err(Miss::NoRegion(_)) => Err(libc::ENOENT),
            Err(Miss::Fault(_) | Miss::NoBacking) => Err(libc::EFAULT),
        }
    }
}
