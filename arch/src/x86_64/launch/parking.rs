//! Where the other processors of `software` isolation wait until the guest wakes them: one page of code and its page
//! tables, in private memory.
//!
//! In real mode there is no C-bit, so INIT and SIPI can't start a processor here. Each waits in 64-bit mode instead, and
//! looks into the mailbox of the ACPI multiprocessor wakeup structure (ACPI 6.5, 5.2.12.19) for its own APIC id. Before
//! each look it reads [`PARKING_PORT`], so that the VMM decides how often it looks.
//!
//! Linux's first instructions on a processor run with paging off, and then on page tables without the C-bit: through the
//! shared alias of low memory. So a processor that is woken says so on [`LEAVING_PORT`], copies the private low memory to
//! the shared alias, empties the mailbox and jumps. The VMM discards the copy once the processor has left shared memory:
//! once [`has_left`] says so.
//!
//! The code uses no stack, and no memory but the mailbox and low memory.
#![expect(unsafe_code, reason = "the code is assembled into this program and read from there")]

use hypervisor::x86_64::{Registers, SpecialRegisters};

use super::super::map::{LEAVING_PORT, LOW_END, PARKING_CODE, PARKING_PORT, PARKING_TABLES, WAKEUP_MAILBOX};
use super::super::paging;

// RBX: mailbox (command at 0, APIC id at 4, vector at 8).  R8: own APIC id.  R12: start of the window to the shared alias.
core::arch::global_asm!(
    ".pushsection .rodata.umbra_parking, \"a\", @progbits",
    ".balign 16",
    // Other units of this crate's code may refer to them, nothing else.
    ".globl umbra_parking_start, umbra_parking_end",
    ".hidden umbra_parking_start, umbra_parking_end",
    "umbra_parking_start:",
    "2:",
    "mov edx, {parking_port}",
    "in al, dx",
    // The id first: whoever sees its own one in front of a command has the vector that goes with it.
    "cmp dword ptr [rbx + 4], r8d",
    "jne 2b",
    "cmp word ptr [rbx], 1",
    "jne 2b",
    "mov r9, [rbx + 8]",
    "mov edx, {leaving_port}",
    "mov al, 1",
    "out dx, al",
    "xor esi, esi",
    "mov rdi, r12",
    "mov ecx, {low_end}",
    "cld",
    "rep movsb",
    // The guest goes on once the command is gone.
    "mov word ptr [rbx], 0",
    "jmp r9",
    "umbra_parking_end:",
    ".popsection",
    parking_port = const PARKING_PORT as u32,
    leaving_port = const LEAVING_PORT as u32,
    low_end = const LOW_END,
);

unsafe extern "C" {
    static umbra_parking_start: u8;
    static umbra_parking_end: u8;
}

/// The code, position-independent, at most a page.
pub(super) fn code() -> &'static [u8] {
    let (start, end) = (&raw const umbra_parking_start, &raw const umbra_parking_end);
    let length = end as usize - start as usize;
    // SAFETY: both symbols bracket the bytes assembled above, in one read-only section that lives as long as the
    // program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// The page tables for [`PARKING_TABLES`].
pub(super) fn tables(mark: u64) -> Vec<u8> {
    paging::identity_and_plain_start(PARKING_TABLES, mark)
}

/// Registers to start processor `id` with.
pub(super) fn entry(id: u8) -> Registers {
    Registers {
        rflags: 2,
        rip: PARKING_CODE,
        rbx: WAKEUP_MAILBOX,
        r8: id.into(),
        r12: paging::view_start(1),
        ..Default::default()
    }
}

/// Whether a processor that has left its parking place runs on page tables of the guest's in private memory, and so has no
/// use for the shared copy of low memory any more.
pub fn has_left(special: &SpecialRegisters, c_bit: u8) -> bool {
    const CR0_PG: u64 = 1 << 31;
    let mark = 1 << c_bit;
    special.cr0 & CR0_PG != 0 && special.cr3 & mark != 0 && special.cr3 & !mark != PARKING_TABLES
}

/// Whether a parked processor was taken away by INIT: then it is in real mode.
pub fn is_lost(special: &SpecialRegisters) -> bool {
    const CR0_PE: u64 = 1;
    special.cr0 & CR0_PE == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::map::{ACPI_END, ACPI_START};

    #[test]
    fn code_and_tables_fit_into_their_places_in_the_acpi_area() {
        const { assert!(ACPI_START < WAKEUP_MAILBOX && WAKEUP_MAILBOX.is_multiple_of(4096)) };
        let code = code();
        assert!(PARKING_CODE + code.len() as u64 <= PARKING_TABLES, "{}", code.len());
        assert_eq!(code[code.len() - 3..], [0x41, 0xff, 0xe1]); // jmp r9
        assert!(PARKING_TABLES + tables(1 << 47).len() as u64 <= ACPI_END);
        const { assert!(WAKEUP_MAILBOX + 4096 <= PARKING_CODE) };
    }

    #[test]
    fn a_processor_has_left_once_it_has_private_tables_that_are_not_the_parking_place() {
        let c = 1u64 << 47;
        let state = |cr0, cr3| SpecialRegisters { cr0, cr3, ..Default::default() };
        assert!(!has_left(&state(0x8000_0001, PARKING_TABLES | c), 47), "it is still copying");
        assert!(!has_left(&state(0x11, 0x9_a000), 47), "paging is off");
        assert!(!has_left(&state(0x8000_0001, 0x9_a000), 47), "its tables are shared");
        assert!(has_left(&state(0x8000_0001, 0x281_0000 | c), 47));
    }
}
