//! What guests and processors say and need: boot, CPUID, MSRs, ACPI, and the isolation of guest memory.
//!
//! Everything here is a pure function from configuration to data, or from what a guest said to a typed request. Nothing
//! here makes a system call or touches guest memory: the `vmm` crate does both with what it gets from here.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
