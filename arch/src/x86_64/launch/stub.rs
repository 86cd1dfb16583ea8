//! The launch code of `software` isolation: one page that copies the guest's first memory from the launch window to private
//! RAM.
//!
//! It starts where its page tables show the window, and at the lowest addresses they show private RAM. It never returns to the
//! window once it has left it. It uses no stack.
#![expect(unsafe_code, reason = "the code is assembled into this program and read from there")]

use hypervisor::x86_64::Registers;

use crate::x86_64::map::LAUNCH_PORT;

// RBX: copy list in the window, pairs of address and size, ended by a size of 0.  R10: page tables for the kernel.
// R12: start of the window.  R13: boot parameters.  R15: kernel's entry.
core::arch::global_asm!(
    ".pushsection .rodata.umbra_launch, \"a\", @progbits",
    ".balign 16",
    // Other units of this crate's code may refer to them, nothing else.
    ".globl umbra_launch_start, umbra_launch_end",
    ".hidden umbra_launch_start, umbra_launch_end",
    "umbra_launch_start:",
    // Copy each range to the same address of the private alias.
    "2:",
    "mov rdi, [rbx]",
    "mov rax, [rbx + 8]",
    "test rax, rax",
    "jz 3f",
    "lea rsi, [rdi + r12]",
    // 64 bytes at a time: to an emulated processor, each step of a string instruction is as much as four such moves.
    "mov rcx, rax",
    "shr rcx, 6",
    "jz 6f",
    "5:",
    "mov r8, [rsi]",
    "mov r9, [rsi + 8]",
    "mov r11, [rsi + 16]",
    "mov r14, [rsi + 24]",
    "mov [rdi], r8",
    "mov [rdi + 8], r9",
    "mov [rdi + 16], r11",
    "mov [rdi + 24], r14",
    "mov r8, [rsi + 32]",
    "mov r9, [rsi + 40]",
    "mov r11, [rsi + 48]",
    "mov r14, [rsi + 56]",
    "mov [rdi + 32], r8",
    "mov [rdi + 40], r9",
    "mov [rdi + 48], r11",
    "mov [rdi + 56], r14",
    "add rsi, 64",
    "add rdi, 64",
    "dec rcx",
    "jnz 5b",
    "6:",
    "mov ecx, eax",
    "and ecx, 63",
    "rep movsb",
    "add rbx, 16",
    "jmp 2b",
    // Go on in the private copy of this code, then with tables that lie in private memory.
    "3:",
    "lea rax, [rip + 4f]",
    "sub rax, r12",
    "jmp rax",
    "4:",
    "mov cr3, r10",
    "mov edx, {port}",
    "mov al, 1",
    "out dx, al",
    // The 64-bit entry of Linux.
    "mov rsi, r13",
    "xor eax, eax",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor edi, edi",
    "xor ebp, ebp",
    "jmp r15",
    "umbra_launch_end:",
    ".popsection",
    port = const LAUNCH_PORT as u32,
);

unsafe extern "C" {
    static umbra_launch_start: u8;
    static umbra_launch_end: u8;
}

/// The code, position-independent, at most a page.
pub(super) fn code() -> &'static [u8] {
    let (start, end) = (&raw const umbra_launch_start, &raw const umbra_launch_end);
    let length = end as usize - start as usize;
    // SAFETY: both symbols bracket the bytes assembled above, in one read-only section that lives as long as the
    // program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// What the code finds in its registers.
pub(super) struct Entry {
    /// Start of the window, a virtual address.
    pub(super) window: u64,
    /// Guest physical address of the code.
    pub(super) code: u64,
    /// Guest physical address of the copy list.
    pub(super) list: u64,
    /// CR3 for the kernel, C-bit included.
    pub(super) kernel_tables: u64,
    /// Guest physical address of the boot parameters.
    pub(super) boot_params: u64,
    /// The kernel's entry.
    pub(super) kernel_entry: u64,
}

/// Registers to start the code with.
pub(super) fn entry(entry: Entry) -> Registers {
    Registers {
        rflags: 2,
        rip: entry.window + entry.code,
        rbx: entry.window + entry.list,
        r10: entry.kernel_tables,
        r12: entry.window,
        r13: entry.boot_params,
        r15: entry.kernel_entry,
        ..Default::default()
    }
}

/// The copy list as bytes, closed by an empty range.
pub(super) fn copy_list(ranges: impl IntoIterator<Item = (u64, u64)>) -> Vec<u8> {
    let ranges = ranges.into_iter().filter(|(_, size)| *size != 0);
    ranges.chain([(0, 0)]).flat_map(|(address, size)| [address, size]).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_fits_a_page_and_ends_with_the_jump_to_the_kernel() {
        let code = code();
        assert!(code.len() < 256, "{}", code.len());
        assert_eq!(code[code.len() - 3..], [0x41, 0xff, 0xe7]); // jmp r15
    }

    #[test]
    fn the_list_ends_at_its_first_empty_range() {
        let list = copy_list([(1, 2), (9, 0), (3, 4)]);
        let words: Vec<u64> = list.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [1, 2, 3, 4, 0, 0]);
    }
}
