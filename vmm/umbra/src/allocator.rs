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
    use std::sync::{Mutex, PoisonError};

    use anyhow::Context;

    use super::*;

    /// Both tests measure the whole process, so one at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Bytes that the process has in memory.
    fn resident() -> anyhow::Result<u64> {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).context("no Pss_Anon")?;
        Ok(line.trim().strip_suffix(" kB").context("no size")?.parse::<u64>()? << 10)
    }

    #[test]
    fn what_is_freed_goes_back_even_after_larger_pieces_went() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        give_memory_back();
        let large = vec![1u8; 24 << 20];
        drop(std::hint::black_box(large));
        let before = resident().unwrap();
        let piece = vec![1u8; 16 << 20];
        let held = resident().unwrap();
        // On top of it in a heap, if it were in one.
        let small = vec![1u8; 1000];
        drop(std::hint::black_box(piece));
        let after = resident().unwrap();
        drop(std::hint::black_box(small));
        assert!(held >= before + (12 << 20), "{before} {held}");
        assert!(after + (12 << 20) <= held, "{before} {held} {after}");
    }

    #[test]
    fn what_is_free_between_pieces_in_use_goes_back() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pieces: Vec<Vec<u8>> = (0..16384).map(|_| vec![1; 2000]).collect();
        let mut number = 0;
        pieces.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        let before = resident().unwrap();
        trim();
        let after = resident().unwrap();
        drop(std::hint::black_box(pieces));
        assert!(after + (16 << 20) <= before, "{before} {after}");
    }
}
