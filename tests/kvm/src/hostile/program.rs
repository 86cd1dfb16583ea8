//! The guest's kernel: a machine monitor that takes tasks over the serial port.
//!
//! It is entered as Linux is at its 64-bit entry: in long mode, on page tables that show the first 4 GiB. It makes page
//! tables of its own, in pages of 2 MiB, with two views of the first 8 GiB of guest physical memory: from 0 through the
//! private alias, from [`SHARED_VIEW`] through the shared one. The bit that tells them apart comes from CPUID; where
//! there is none, both views are the same. Each exception is reported, and the next task is waited for.
//!
//! It uses no interrupts, polls the port, and touches no memory but its own and what a task names.
#![expect(unsafe_code, reason = "the code is assembled into this program and read from there")]

use arch::x86_64::map::SERIAL_PORT;

use super::task;

/// Where the guest sees the shared alias: entry 1 of its top page table.
pub const SHARED_VIEW: u64 = 1 << 39;

/// Hypercall number of KVM_HC_MAP_GPA_RANGE (Linux `include/uapi/linux/kvm_para.h`).
pub const MAP_GPA_RANGE: u32 = 12;

/// How a line starts that says that the guest is up. The bit by which it chooses the private alias follows.
pub const BANNER: &str = "up ";
/// How a line starts that answers a task.
pub const DONE: &str = "done";
/// How a line starts that reports an exception.
pub const FAULT: &str = "fault";

/// Bytes that it takes in memory: the code, its page tables, and a page for everything else.
pub const SIZE: u64 = STACK;
const PAGE: u64 = 0x1000;
/// The top page table, a table of pointers for each view, and as many directories for each as it shows GiB.
const TABLES: u64 = PAGE;
const POINTERS: u64 = TABLES + PAGE;
const DIRECTORIES: u64 = POINTERS + 2 * PAGE;
const GIB: u64 = 8;
const ENTRIES: u64 = 512;
/// The interrupt descriptors, and what LIDT reads.
const IDT: u64 = DIRECTORIES + 2 * GIB * PAGE;
const IDT_POINTER: u64 = IDT + 0x200;
const VECTORS: u32 = 32;
/// The task at hand.
const TASK: u64 = IDT + 0x400;
const STACK: u64 = IDT + PAGE;

// R12: start of the program.  R15: the bit that chooses the private alias.  Numeric labels start at 2: the assembler takes
// 0 and 1, followed by b or f, for numbers.
core::arch::global_asm!(
    ".pushsection .rodata.hostile_program, \"a\", @progbits",
    ".balign 16",
    // Other units of this crate's code may refer to them, nothing else.
    ".globl hostile_program_start, hostile_program_end",
    ".hidden hostile_program_start, hostile_program_end",
    "hostile_program_start:",
    "cld",
    "lea r12, [rip + hostile_program_start]",
    "lea rsp, [r12 + {stack}]",
    // Memory encryption, as CPUID tells it.
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
    // Page tables, all of them in private memory. Tables: RAX is the next one, marked and present.
    "lea rax, [r12 + {pointers} + 3]",
    "or rax, r15",
    "mov [r12 + {tables}], rax",
    "add rax, {page}",
    "mov [r12 + {tables} + 8], rax",
    "lea rdi, [r12 + {pointers}]",
    "mov ecx, {gib}",
    "3:",
    "add rax, {page}",
    "mov [rdi], rax",
    "lea rdx, [rax + {gib} * {page}]",
    "mov [rdi + {page}], rdx",
    "add rdi, 8",
    "dec ecx",
    "jnz 3b",
    // Pages: the directories of a view lie one behind the other.
    "lea rdi, [r12 + {directories}]",
    "mov eax, 0x83",
    "mov ecx, {gib} * {entries}",
    "3:",
    "mov [rdi + {gib} * {page}], rax",
    "mov rdx, rax",
    "or rdx, r15",
    "mov [rdi], rdx",
    "add rax, 0x200000",
    "add rdi, 8",
    "dec ecx",
    "jnz 3b",
    "lea rax, [r12 + {tables}]",
    "or rax, r15",
    "mov cr3, rax",
    // Interrupt gates for all exceptions.
    "lea rdi, [r12 + {idt}]",
    "mov word ptr [r12 + {idt_pointer}], {vectors} * 16 - 1",
    "mov [r12 + {idt_pointer} + 2], rdi",
    "lea rax, [rip + hostile_program_vectors]",
    "mov ecx, {vectors}",
    "4:",
    "movzx edx, ax",
    "or edx, 0x100000",
    "mov [rdi], edx",
    "mov edx, eax",
    "and edx, 0xffff0000",
    "or edx, 0x8e00",
    "mov [rdi + 4], edx",
    "mov rdx, rax",
    "shr rdx, 32",
    "mov [rdi + 8], rdx",
    "add rdi, 16",
    "add rax, 16",
    "dec ecx",
    "jnz 4b",
    "lidt [r12 + {idt_pointer}]",
    "lea rsi, [rip + hostile_program_banner]",
    "call hostile_program_say",
    "mov rdi, r15",
    "call hostile_program_say_word",
    "jmp hostile_program_end_line",
    // The answer of a task that has none, or is in R8 and R9.
    "hostile_program_nothing:",
    "xor r8d, r8d",
    "hostile_program_one_word:",
    "xor r9d, r9d",
    "hostile_program_two_words:",
    "lea rsi, [rip + hostile_program_done]",
    "hostile_program_answer:",
    "call hostile_program_say",
    "mov rdi, r8",
    "call hostile_program_say_word",
    "mov al, 0x20",
    "out dx, al",
    "mov rdi, r9",
    "call hostile_program_say_word",
    "hostile_program_end_line:",
    "mov al, 0x0a",
    "out dx, al",
    // The next task.
    "lea rsp, [r12 + {stack}]",
    "lea rdi, [r12 + {task}]",
    "mov ebx, {task_size}",
    "2:",
    "mov edx, {port} + 5",
    "in al, dx",
    "test al, 1",
    "jnz 4f",
    "mov ecx, 5000",
    "3:",
    "dec ecx",
    "jnz 3b",
    "jmp 2b",
    "4:",
    "mov edx, {port}",
    "in al, dx",
    "stosb",
    "dec ebx",
    "jnz 2b",
    "mov eax, [r12 + {task}]",
    "mov rdi, [r12 + {task} + 8]",
    "mov rcx, [r12 + {task} + 16]",
    "mov rdx, [r12 + {task} + 24]",
    "cmp eax, {fill}",
    "je hostile_program_fill",
    "cmp eax, {touch}",
    "je hostile_program_touch",
    "cmp eax, {compare}",
    "je hostile_program_compare",
    "cmp eax, {read}",
    "je hostile_program_read",
    "cmp eax, {hypercall}",
    "je hostile_program_hypercall",
    "cmp eax, {churn}",
    "je hostile_program_churn",
    "cmp eax, {write_msr}",
    "je hostile_program_write_msr",
    "cmp eax, {read_msr}",
    "je hostile_program_read_msr",
    "cmp eax, {out}",
    "je hostile_program_out",
    "cmp eax, {triple_fault}",
    "je hostile_program_triple_fault",
    "cmp eax, {load}",
    "je hostile_program_load",
    "cmp eax, {store}",
    "je hostile_program_store",
    "cmp eax, {out_wide}",
    "je hostile_program_out_wide",
    "ud2",
    "hostile_program_fill:",
    "mov rax, rdx",
    "rep stosq",
    "jmp hostile_program_nothing",
    "hostile_program_touch:",
    "call hostile_program_touch_pages",
    "jmp hostile_program_nothing",
    "hostile_program_compare:",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "2:",
    "cmp r8, rcx",
    "je hostile_program_two_words",
    "mov r9, [rdi + 8 * r8]",
    "cmp r9, rdx",
    "jne hostile_program_two_words",
    "inc r8",
    "jmp 2b",
    "hostile_program_read:",
    "mov r8, [rdi]",
    "jmp hostile_program_one_word",
    "hostile_program_hypercall:",
    "mov rax, rdi",
    "mov rbx, rcx",
    "mov rcx, rdx",
    "mov rdx, [r12 + {task} + 32]",
    "vmmcall",
    "mov r8, rax",
    "jmp hostile_program_one_word",
    "hostile_program_churn:",
    "mov r13, rdi",
    "mov r14, rdx",
    "xor r8d, r8d",
    "2:",
    "test r14, r14",
    "jz hostile_program_one_word",
    "xor edx, edx",
    "mov rdi, r13",
    "bts rdi, {shared_view_bit}",
    "call hostile_program_convert_and_touch",
    "mov edx, 0x10",
    "mov rdi, r13",
    "call hostile_program_convert_and_touch",
    "mov rcx, [r12 + {task} + 16]",
    "shl rcx, 12",
    "add r13, rcx",
    "dec r14",
    "jmp 2b",
    "hostile_program_write_msr:",
    "mov rax, rcx",
    "mov rdx, rcx",
    "shr rdx, 32",
    "mov ecx, edi",
    "wrmsr",
    "jmp hostile_program_nothing",
    "hostile_program_read_msr:",
    "mov ecx, edi",
    "rdmsr",
    "shl rdx, 32",
    "mov r8d, eax",
    "or r8, rdx",
    "jmp hostile_program_one_word",
    "hostile_program_out:",
    "mov edx, edi",
    "mov eax, ecx",
    "out dx, al",
    "jmp hostile_program_nothing",
    "hostile_program_triple_fault:",
    "push 0",
    "push 0",
    "lidt [rsp]",
    "ud2",
    // Bytes at RDI, as many as RCX says: 1, 2, 4 or 8 in one access, as a device's registers want it.
    "hostile_program_load:",
    "xor eax, eax",
    "cmp ecx, 2",
    "jb 2f",
    "je 3f",
    "cmp ecx, 4",
    "je 4f",
    "mov rax, [rdi]",
    "jmp 5f",
    "2:",
    "mov al, [rdi]",
    "jmp 5f",
    "3:",
    "mov ax, [rdi]",
    "jmp 5f",
    "4:",
    "mov eax, [rdi]",
    "5:",
    "mov r8, rax",
    "jmp hostile_program_one_word",
    "hostile_program_store:",
    "cmp ecx, 2",
    "jb 2f",
    "je 3f",
    "cmp ecx, 4",
    "je 4f",
    "mov [rdi], rdx",
    "jmp hostile_program_nothing",
    "2:",
    "mov [rdi], dl",
    "jmp hostile_program_nothing",
    "3:",
    "mov [rdi], dx",
    "jmp hostile_program_nothing",
    "4:",
    "mov [rdi], edx",
    "jmp hostile_program_nothing",
    "hostile_program_out_wide:",
    "mov edx, edi",
    "mov eax, ecx",
    "out dx, eax",
    "jmp hostile_program_nothing",
    // Announces the pages at R13 with the attributes in EDX, counts in R8 if that fails, and writes to each at RDI.
    "hostile_program_convert_and_touch:",
    "mov eax, {map_gpa_range}",
    "mov rbx, r13",
    "mov rcx, [r12 + {task} + 16]",
    "vmmcall",
    "test rax, rax",
    "setne al",
    "movzx eax, al",
    "add r8, rax",
    "mov rcx, [r12 + {task} + 16]",
    // Writes RDX to each of RCX pages at RDI.
    "hostile_program_touch_pages:",
    "test rcx, rcx",
    "jz 3f",
    "mov [rdi], rdx",
    "add rdi, 0x1000",
    "dec rcx",
    "jmp hostile_program_touch_pages",
    "3:",
    "ret",
    // Writes the text at RSI.
    "hostile_program_say:",
    "mov edx, {port}",
    "2:",
    "lodsb",
    "test al, al",
    "jz 3f",
    "out dx, al",
    "jmp 2b",
    "3:",
    "ret",
    // Writes RDI in hexadecimal digits.
    "hostile_program_say_word:",
    "mov edx, {port}",
    "mov ecx, 16",
    "2:",
    "rol rdi, 4",
    "mov eax, edi",
    "and eax, 0xf",
    "cmp al, 10",
    "jb 3f",
    "add al, 39",
    "3:",
    "add al, 48",
    "out dx, al",
    "dec ecx",
    "jnz 2b",
    "ret",
    // Exceptions: each vector pushes its number, 16 bytes apart.
    ".balign 16",
    "hostile_program_vectors:",
    ".set hostile_program_vector, 0",
    ".rept {vectors}",
    ".byte 0x6a, hostile_program_vector",
    "jmp hostile_program_exception",
    ".balign 16",
    ".set hostile_program_vector, hostile_program_vector + 1",
    ".endr",
    "hostile_program_exception:",
    "pop r8",
    "mov r9, cr2",
    "lea r12, [rip + hostile_program_start]",
    "lea rsp, [r12 + {stack}]",
    "lea rsi, [rip + hostile_program_fault]",
    "jmp hostile_program_answer",
    "hostile_program_banner: .asciz \"up \"",
    "hostile_program_done: .asciz \"done \"",
    "hostile_program_fault: .asciz \"fault \"",
    "hostile_program_end:",
    ".popsection",
    stack = const STACK,
    page = const PAGE,
    tables = const TABLES,
    pointers = const POINTERS,
    directories = const DIRECTORIES,
    gib = const GIB,
    entries = const ENTRIES,
    idt = const IDT,
    idt_pointer = const IDT_POINTER,
    vectors = const VECTORS,
    task = const TASK,
    task_size = const task::WORDS * 8,
    port = const SERIAL_PORT as u32,
    shared_view_bit = const SHARED_VIEW.trailing_zeros(),
    map_gpa_range = const MAP_GPA_RANGE,
    fill = const task::FILL,
    touch = const task::TOUCH,
    compare = const task::COMPARE,
    read = const task::READ,
    hypercall = const task::HYPERCALL,
    churn = const task::CHURN,
    write_msr = const task::WRITE_MSR,
    read_msr = const task::READ_MSR,
    out = const task::OUT,
    triple_fault = const task::TRIPLE_FAULT,
    load = const task::LOAD,
    store = const task::STORE,
    out_wide = const task::OUT_WIDE,
);

unsafe extern "C" {
    static hostile_program_start: u8;
    static hostile_program_end: u8;
}

/// The program, position-independent, to be put at the start of a page and entered at its first byte.
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const hostile_program_start, &raw const hostile_program_end);
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

    #[test]
    fn its_words_are_those_that_replies_are_read_by() {
        let code = code();
        for word in [BANNER, DONE, FAULT] {
            assert!(code.windows(word.len()).any(|bytes| bytes == word.as_bytes()), "{word}");
        }
    }
}
