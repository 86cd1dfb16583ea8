//! MSRs that the VMM sets, filters and answers.
//!
//! KVM itself reads and writes the pages whose addresses a guest puts into its paravirtual MSRs, through the shared
//! backing and without asking for the page's state. A hostile guest could so grow the shared backing of private pages, page
//! by page and for as long as the MSR stands. Writes of those MSRs therefore leave to the VMM, which checks the address
//! before it lets KVM have it. KVM writes to guest memory in other places as well, which no filter reaches: see
//! docs/threat-model.md.
//!
//! Sources: AMD's manual volume 2, 15.34.10 (SEV_STATUS); Linux `Documentation/virt/kvm/x86/msr.rst` and
//! `arch/x86/kvm/x86.c` (`kvm_set_msr_common`).

use hypervisor::MsrFilter;

use super::Isolation;

/// `IA32_MTRR_DEF_TYPE`: MTRRs on, everything write-back. Linux 6.1 maps nothing early without the page attribute table,
/// which it takes from here.
pub const MTRR_DEFAULT: (u32, u64) = (0x2ff, 0x806);

/// `MSR_AMD64_SEV`, by which a guest learns what protects it.
const SEV_STATUS: u32 = 0xc001_0131;
/// Its bit for plain SEV.
const SEV_ENABLED: u64 = 1;

/// `MSR_KVM_MIGRATION_CONTROL`: a guest says whether it may be migrated.
const MIGRATION_CONTROL: u32 = 0x4b56_4d08;

/// What a guest's access to a filtered MSR means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilteredMsr {
    /// Reads as this, and takes no write.
    Constant(u64),
    /// Takes any write, and reads as zero.
    Ignored,
    /// Names guest memory that KVM uses.
    Paravirtual(ParavirtualMsr),
}

/// A paravirtual MSR that holds a guest physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParavirtualMsr {
    /// Which of KVM's facilities it belongs to: two MSRs of one facility replace each other's value.
    pub facility: Facility,
    /// Which bits of the value are the address.
    address: u64,
    /// Whether KVM uses the memory while this bit is set; `None` for a single use at once.
    enable: Option<u64>,
    /// How many bytes it uses.
    size: u64,
}

/// What KVM uses guest memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facility {
    /// The time of day at boot, written once for each write of the MSR.
    WallClock,
    /// The paravirtual clock.
    SystemTime,
    /// Asynchronous page faults.
    AsyncPageFault,
    /// Time that the host took.
    StealTime,
    /// The end of an interrupt.
    EndOfInterrupt,
}

/// Bytes of guest memory that KVM uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParavirtualMemory {
    /// First byte.
    pub gpa: u64,
    /// How many.
    pub size: u64,
    /// Whether KVM goes on using them until the MSR is written again.
    pub lasting: bool,
}

impl ParavirtualMsr {
    /// The memory that KVM uses once this value is written; `None` if it uses none.
    pub fn memory(self, value: u64) -> Option<ParavirtualMemory> {
        let on = self.enable.is_none_or(|bit| value & bit != 0);
        on.then_some(ParavirtualMemory { gpa: value & self.address, size: self.size, lasting: self.enable.is_some() })
    }
}

/// Wall clock: 12 bytes at any address, written at once.
const WALL_CLOCK: ParavirtualMsr =
    ParavirtualMsr { facility: Facility::WallClock, address: !0, enable: None, size: 12 };
/// System time (kvmclock): 32 bytes, on while bit 0 is set.
const SYSTEM_TIME: ParavirtualMsr =
    ParavirtualMsr { facility: Facility::SystemTime, address: !1, enable: Some(1), size: 32 };
/// Asynchronous page faults: 64 bytes, aligned so.
const ASYNC_PF: ParavirtualMsr =
    ParavirtualMsr { facility: Facility::AsyncPageFault, address: !0x3f, enable: Some(1), size: 64 };
/// Steal time: 64 bytes, aligned so.
const STEAL_TIME: ParavirtualMsr =
    ParavirtualMsr { facility: Facility::StealTime, address: !0x3f, enable: Some(1), size: 64 };
/// End of interrupt: 1 byte, on while bit 0 is set (KVM uses 4-byte alignment).
const PV_EOI: ParavirtualMsr =
    ParavirtualMsr { facility: Facility::EndOfInterrupt, address: !0x3, enable: Some(1), size: 4 };

/// MSRs of a guest under this isolation that leave to the VMM.
///
/// Under `none` every page is shared for good and KVM may write where the guest says, so nothing leaves.
pub fn filter(isolation: Isolation) -> &'static [MsrFilter] {
    match isolation {
        Isolation::None => &[],
        Isolation::Software => &[
            MsrFilter { first: 0x11, count: 2, reads: false },
            MsrFilter { first: 0x4b56_4d00, count: 5, reads: false },
            MsrFilter { first: MIGRATION_CONTROL, count: 1, reads: true },
            MsrFilter { first: SEV_STATUS, count: 1, reads: true },
        ],
    }
}

/// What an access to a filtered MSR means; `None` for one that [`filter`] doesn't name.
pub fn filtered(index: u32) -> Option<FilteredMsr> {
    Some(match index {
        0x11 | 0x4b56_4d00 => FilteredMsr::Paravirtual(WALL_CLOCK),
        0x12 | 0x4b56_4d01 => FilteredMsr::Paravirtual(SYSTEM_TIME),
        0x4b56_4d02 => FilteredMsr::Paravirtual(ASYNC_PF),
        0x4b56_4d03 => FilteredMsr::Paravirtual(STEAL_TIME),
        0x4b56_4d04 => FilteredMsr::Paravirtual(PV_EOI),
        MIGRATION_CONTROL => FilteredMsr::Ignored,
        SEV_STATUS => FilteredMsr::Constant(SEV_ENABLED),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filtered_msr_has_a_meaning() {
        for range in filter(Isolation::Software) {
            for index in range.first..range.first + range.count {
                assert!(filtered(index).is_some(), "{index:#x}");
            }
        }
    }

    #[test]
    fn values_name_memory_only_while_enabled() {
        let Some(FilteredMsr::Paravirtual(clock)) = filtered(0x4b56_4d01) else { panic!("kvmclock") };
        assert_eq!(clock.memory(0x1234_5000), None);
        assert_eq!(clock.memory(0x1234_5001), Some(ParavirtualMemory { gpa: 0x1234_5000, size: 32, lasting: true }));
        let Some(FilteredMsr::Paravirtual(wall)) = filtered(0x11) else { panic!("wall clock") };
        assert_eq!(wall.memory(u64::MAX), Some(ParavirtualMemory { gpa: u64::MAX, size: 12, lasting: false }));
    }
}
