//! The guest's kernel: it starts all processors, and each converts pages for ever.
//!
//! It is entered as Linux is at its 64-bit entry. Its page tables have two views of the first GiB of guest physical memory,
//! as those of [`crate::hostile`] have: from 0 through the private alias, from entry 1 of the top table through the shared
//! one. Other processors are started through the mailbox of the ACPI multiprocessor wakeup structure where memory is
//! encrypted, and by INIT and SIPI where it is not, or where the command line has an `i` behind the number, from 16-bit code that is copied to [`REAL_MODE`].
//!
//! It uses no stack and no memory but its own, the mailbox, that page, and the pages that it converts.
#![expect(unsafe_code, reason = "the code is assembled into this program and read from there")]

use arch::x86_64::map::{SERIAL_PORT, WAKEUP_MAILBOX};

use crate::hostile::MAP_GPA_RANGE;

/// The pages of the first processor; those of the next begin so many bytes further on.
pub const PAGES: u64 = 32 << 20;
pub const STEP: u64 = 4 * PAGE;
pub const COUNT: u64 = 16;
/// How many rounds a processor makes before it gives a sign.
pub const ROUNDS_BETWEEN_SIGNS: u64 = 16;

const PAGE: u64 = 0x1000;
/// The top page table, and for each view a table of pointers and a directory.
const TABLES: u64 = PAGE;
const POINTERS: u64 = TABLES + PAGE;
const DIRECTORIES: u64 = POINTERS + 2 * PAGE;
/// CR3 with these tables.
const TABLES_REGISTER: u64 = DIRECTORIES + 2 * PAGE;
/// Bytes that it takes in memory.
pub const SIZE: u64 = TABLES_REGISTER + PAGE;

/// Where processors that start in real mode find their code, and behind it what to load: GDT, CR3, where to go on.
const REAL_MODE: u64 = 0x8000;
const REAL_MODE_GDT: u64 = REAL_MODE + 0xfe0;
const REAL_MODE_TABLES: u64 = REAL_MODE + 0xff0;
const REAL_MODE_TARGET: u64 = REAL_MODE + 0xff8;

// R12: start of the program.  R13: number of this processor.  R14: number of processors.  R15: the bit that chooses the
// private alias.
core::arch::global_asm!(
    ".pushsection .rodata.swarm_program, \"a\", @progbits",
    ".balign 16",
    // Other units of this crate's code may refer to them, nothing else.
    ".globl swarm_start, swarm_end",
    ".hidden swarm_start, swarm_end",
    "swarm_start:",
    "cld",
    "lea r12, [rip + swarm_start]",
    "mov eax, [rsi + 0x228]",
    "movzx r14d, byte ptr [rax]",
    "sub r14d, 0x30",
    "movzx ebp, byte ptr [rax + 1]",
    "xor r15d, r15d",
    "mov eax, 0x80000000",
    "cpuid",
    "cmp eax, 0x8000001f",
    "jb 2f",
    "mov eax, 0x8000001f",
    "xor ecx, ecx",
    "cpuid",
    "test al, 2",
    "jz 2f",
    "and ebx, 0x3f",
    "bts r15, rbx",
    "2:",
    // Page tables.
    "lea rax, [r12 + {pointers} + 3]",
    "or rax, r15",
    "mov [r12 + {tables}], rax",
    "add rax, {page}",
    "mov [r12 + {tables} + 8], rax",
    "add rax, {page}",
    "mov [r12 + {pointers}], rax",
    "add rax, {page}",
    "mov [r12 + {pointers} + {page}], rax",
    "lea rdi, [r12 + {directories}]",
    "mov eax, 0x83",
    "mov ecx, 512",
    "3:",
    "mov [rdi + {page}], rax",
    "mov rdx, rax",
    "or rdx, r15",
    "mov [rdi], rdx",
    "add rax, 0x200000",
    "add rdi, 8",
    "dec ecx",
    "jnz 3b",
    "lea rax, [r12 + {tables}]",
    "or rax, r15",
    "mov [r12 + {register}], rax",
    "mov cr3, rax",
    // Start the others.
    "mov r13d, 1",
    "test r15, r15",
    "jz 6f",
    "cmp ebp, 0x69",
    "je 6f",
    "4:",
    "cmp r13d, r14d",
    "jae 9f",
    "mov eax, {mailbox}",
    "mov [rax + 4], r13d",
    "lea rdx, [rip + swarm_other]",
    "mov [rax + 8], rdx",
    "mov word ptr [rax], 1",
    "5:",
    "pause",
    "cmp word ptr [rax], 0",
    "jne 5b",
    "inc r13d",
    "jmp 4b",
    "6:",
    "lea rsi, [rip + swarm_real_mode]",
    "mov edi, {real_mode}",
    "lea rcx, [rip + swarm_real_mode_end]",
    "sub rcx, rsi",
    "rep movsb",
    "mov eax, {real_mode_gdt}",
    "sgdt [rax]",
    "mov rdx, [r12 + {register}]",
    "mov [rax + 0x10], rdx",
    "lea rdx, [rip + swarm_other]",
    "mov [rax + 0x18], rdx",
    // INIT and SIPI through the x2APIC's interrupt command register.
    "7:",
    "cmp r13d, r14d",
    "jae 9f",
    "mov ecx, 0x830",
    "mov edx, r13d",
    "mov eax, 0x4500",
    "wrmsr",
    "mov eax, 0x4600 + {real_mode} / 0x1000",
    "wrmsr",
    "inc r13d",
    "jmp 7b",
    "9:",
    "xor r13d, r13d",
    "jmp swarm_work",
    // Where the others begin, in 64-bit mode. Their number is that of their x2APIC.
    "swarm_other:",
    "cld",
    "lea r12, [rip + swarm_start]",
    "mov rax, [r12 + {register}]",
    "mov cr3, rax",
    "lea rdx, [r12 + {tables}]",
    "sub rax, rdx",
    "mov r15, rax",
    "mov ecx, 0x802",
    "rdmsr",
    "mov r13d, eax",
    "swarm_work:",
    "mov rbp, r13",
    "imul rbp, rbp, {step}",
    "add rbp, {first}",
    "xor r11d, r11d",
    "2:",
    "mov r8, rbp",
    "bts r8, 39",
    "xor edx, edx",
    "test r15, r15",
    "jz 3f",
    "mov eax, {map_gpa_range}",
    "mov rbx, rbp",
    "mov ecx, {count}",
    "vmmcall",
    "3:",
    "mov ecx, {count}",
    "4:",
    "mov [r8], r11",
    "add r8, {page}",
    "dec ecx",
    "jnz 4b",
    "mov r8, rbp",
    "mov edx, 0x10",
    "test r15, r15",
    "jz 5f",
    "mov eax, {map_gpa_range}",
    "mov rbx, rbp",
    "mov ecx, {count}",
    "vmmcall",
    "5:",
    "mov ecx, {count}",
    "6:",
    "mov [r8], r11",
    "add r8, {page}",
    "dec ecx",
    "jnz 6b",
    "inc r11",
    "test r11d, {rounds} - 1",
    "jnz 2b",
    "mov edx, {port}",
    "lea eax, [r13 + 0x30]",
    "out dx, al",
    "jmp 2b",
    // Real mode, at REAL_MODE: straight to 64-bit mode.
    ".balign 16",
    "swarm_real_mode:",
    ".code16",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    "mov eax, 0x20",
    "mov cr4, eax",
    // mov eax, [REAL_MODE_TABLES]
    ".byte 0x66, 0xa1",
    ".word {real_mode_tables}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    // lgdt [REAL_MODE_GDT], with a 32-bit base
    ".byte 0x66, 0x0f, 0x01, 0x16",
    ".word {real_mode_gdt}",
    "mov eax, 0x80000011",
    "mov cr0, eax",
    // A far jump to 64-bit code, the launch's segment.
    ".byte 0x66, 0xea",
    ".long {real_mode} + swarm_long_mode - swarm_real_mode",
    ".word 0x10",
    ".code64",
    "swarm_long_mode:",
    "mov eax, {real_mode_target}",
    "jmp qword ptr [rax]",
    "swarm_real_mode_end:",
    "swarm_end:",
    ".popsection",
    pointers = const POINTERS,
    tables = const TABLES,
    directories = const DIRECTORIES,
    register = const TABLES_REGISTER,
    page = const PAGE,
    mailbox = const WAKEUP_MAILBOX,
    real_mode = const REAL_MODE,
    real_mode_gdt = const REAL_MODE_GDT,
    real_mode_tables = const REAL_MODE_TABLES,
    real_mode_target = const REAL_MODE_TARGET,
    first = const PAGES,
    step = const STEP,
    count = const COUNT,
    rounds = const ROUNDS_BETWEEN_SIGNS,
    map_gpa_range = const MAP_GPA_RANGE,
    port = const SERIAL_PORT as u32,
);

unsafe extern "C" {
    static swarm_start: u8;
    static swarm_end: u8;
}

/// The program, position-independent, to be put at the start of a page and entered at its first byte.
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const swarm_start, &raw const swarm_end);
    let length = end as usize - start as usize;
    // SAFETY: both symbols bracket the bytes assembled above, in one read-only section that lives as long as this
    // process.
    unsafe { std::slice::from_raw_parts(start, length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_ends_before_its_page_tables() {
        assert!(code().len() as u64 <= TABLES, "{:#x}", code().len());
    }
}
