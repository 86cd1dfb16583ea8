//! Resets: a fresh boot, in memory that holds nothing of the old one.

use anyhow::ensure;
use arch::x86_64::map::{KEYBOARD_PORT, KEYBOARD_RESET, RESET_PORT, RESET_VALUE};
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::HostileGuest;

use crate::{MIB, OPEN, SECRET, Test, ZEROS, pages};

pub const TESTS: &[Test] = &[
    ("the_keyboard_controller_resets", || boots_afresh(|guest| guest.resets_by_port(KEYBOARD_PORT, KEYBOARD_RESET))),
    ("the_acpi_reset_register_resets", || boots_afresh(|guest| guest.resets_by_port(RESET_PORT, RESET_VALUE))),
    ("a_triple_fault_resets", || boots_afresh(HostileGuest::triple_faults)),
    ("a_guest_that_waits_ends_on_a_signal", ends_on_a_signal),
];

fn boots_afresh(reset: impl Fn(&mut HostileGuest) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut guest = HostileGuest::boot()?;
    let (private, shared) = (pages(32 * MIB, 4)?, pages(40 * MIB, 4)?);
    for _ in 0..2 {
        guest.sees(Private, private, ZEROS)?;
        guest.fills(Private, private, SECRET)?;
        guest.converts(shared, Shared)?;
        guest.sees(Shared, shared, ZEROS)?;
        guest.fills(Shared, shared, OPEN)?;
        reset(&mut guest)?;
        let statistics = guest.statistics()?;
        expect::equal("shared memory after the reset", statistics.shared_bytes, 0)?;
        expect::equal("memory that the VMM's shared side takes", guest.shared_memory()?.allocated()?, 0)?;
    }
    let ending = guest.is_terminated()?;
    ensure!(ending.status.code() == Some(0), "umbra ended with {}: {}", ending.status, ending.stderr);
    Ok(())
}

fn ends_on_a_signal() -> anyhow::Result<()> {
    let ending = HostileGuest::boot()?.is_terminated()?;
    ensure!(ending.status.code() == Some(0), "umbra ended with {}: {}", ending.status, ending.stderr);
    ensure!(ending.stderr.is_empty(), "umbra said: {}", ending.stderr);
    Ok(())
}
