//! How the C library's allocator holds on to memory.
//!
//! Left alone, glibc raises the size from which it gets memory straight from the kernel each time such memory is freed. After
//! a kernel was decompressed, the next megabytes (an initramfs, say) come from a heap that it then never gives back, and each
//! thread gets a heap of its own. A VMM allocates much before its guest runs and next to nothing after.
#![expect(unsafe_code, reason = "settings of the C library")]

/// Allocations from this size on come from the kernel, and go back to it.
#[cfg(target_env = "gnu")]
const STRAIGHT: libc::c_int = 128 << 10;
/// The most heaps.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Makes it give memory back. To be called before other threads start.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in
        [(libc::M_MMAP_THRESHOLD, STRAIGHT), (libc::M_TRIM_THRESHOLD, STRAIGHT), (libc::M_ARENA_MAX, HEAPS)]
    {
        // SAFETY: it changes numbers that the allocator goes by, and there is one thread. A setting that is refused leaves
        // things as they were.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// Gives back what is free between pieces that are in use.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches only what nobody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_goes_back_even_after_larger_pieces_went() {
        // Bytes that the process has in memory.
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
        };
        give_memory_back();
        let large = vec![1u8; 24 << 20];
        drop(std::hint::black_box(large));
        let before = resident();
        let piece = vec![1u8; 16 << 20];
        let held = resident();
        // On top of it in a heap, if it were in one.
        let small = vec![1u8; 1000];
        drop(std::hint::black_box(piece));
        let after = resident();
        drop(std::hint::black_box(small));
        assert!(held >= before + (12 << 20), "{before} {held}");
        assert!(after + (12 << 20) <= held, "{before} {held} {after}");
    }

    #[test]
    fn what_is_free_between_pieces_in_use_goes_back() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
        };
        let mut pieces: Vec<Vec<u8>> = (0..16384).map(|_| vec![1; 2000]).collect();
        let mut number = 0;
        pieces.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        let before = resident();
        trim();
        let after = resident();
        drop(std::hint::black_box(pieces));
        assert!(after + (16 << 20) <= before, "{before} {after}");
    }
}
