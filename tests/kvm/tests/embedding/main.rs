//! The crates as others embed them: the examples of `vmm` that need KVM, run as their readers would run them, and devices of
//! the embedder's in a machine that runs.
//!
//! Their guest is a few instructions of 64-bit code in an ELF file. It rings the doorbell of the example `machine` about a word of its
//! memory, tells a device at an address without RAM what it read there, and switches the machine off.

#[expect(dead_code, reason = "its own main takes a kernel from the command line")]
#[path = "../../../../vmm/examples/machine.rs"]
mod machine;
#[path = "../../../../vmm/examples/own_loop.rs"]
mod own_loop;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use arch::x86_64::map::{SLEEP_CONTROL_PORT, SLEEP_ENABLE, SLEEP_TYPE_OFF, SLEEP_TYPE_SHIFT};
use hypervisor::{GpaRange, Hypervisor, PAGE_SIZE};
use kvm_tests::hostile::image;
use kvm_tests::requirement::{require, require_caps};
use kvm_tests::trial::trial;
use libtest_mimic::Arguments;
use tempfile::TempDir;
use vmm::config::VmConfig;
use vmm::console::Output;
use vmm::devices::custom::CustomDevice;
use vmm::events::EventMonitor;
use vmm::{Machine, Stop};

/// A named test.
type Test = (&'static str, fn() -> anyhow::Result<()>);

const TESTS: &[Test] = &[
    ("a_vmm_with_its_own_loop_gets_conversions", own_loop),
    ("a_device_of_the_embedder_s_reads_what_is_shared", shared),
    ("a_device_of_the_embedder_s_does_not_read_what_is_private", private),
    ("a_device_of_the_embedder_s_is_at_addresses_without_ram", addresses),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TESTS.iter().map(|(name, test)| trial(name, *test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Where the guest's word is, and what it is.
const WORD_AT: u32 = 32 << 20;
const WORD: u32 = 0x600d_cafe;
/// The addresses of the second device.
const DEVICE: u32 = 0xfed4_0000;

/// The kernel: `mov eax, WORD_AT; mov dword [rax], WORD; mov dx, 0x510; out dx, eax; in al, dx; mov ebx, DEVICE; mov [rbx + 8], al;
/// mov eax, [rbx + 16]; mov [rbx + 24], eax; mov dx, SLEEP; mov al, OFF; out dx, al; jmp $`.
fn kernel() -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(WORD_AT.to_le_bytes());
    code.extend([0xc7, 0x00]);
    code.extend(WORD.to_le_bytes());
    code.extend([0x66, 0xba, 0x10, 0x05, 0xef, 0xec, 0xbb]);
    code.extend(DEVICE.to_le_bytes());
    code.extend([0x88, 0x43, 8, 0x8b, 0x43, 16, 0x89, 0x43, 24, 0x66, 0xba]);
    code.extend(SLEEP_CONTROL_PORT.to_le_bytes());
    code.extend([0xb0, SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT, 0xee, 0xeb, 0xfe]);
    image::elf(62, &code, PAGE_SIZE)
}

/// A machine of the example's, with that kernel; its file is in the folder.
fn config(unmappable: bool) -> anyhow::Result<(VmConfig, TempDir)> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let path = folder.path().join("kernel");
    std::fs::write(&path, kernel()).context("cannot write the kernel")?;
    Ok((machine::config(&path, unmappable), folder))
}

fn own_loop() -> anyhow::Result<()> {
    require(require_caps(&[])?.caps(), Isolation::Software.requirements())?;
    own_loop::main().map_err(anyhow::Error::from_boxed)
}

fn shared() -> anyhow::Result<()> {
    require_caps(&[])?;
    let (config, _folder) = config(false)?;
    let ended = machine::run(&config).map_err(anyhow::Error::from_boxed)?;
    ensure!(ended == (Stop::PowerOff, Some(WORD)), "{ended:?}");
    Ok(())
}

fn private() -> anyhow::Result<()> {
    require(require_caps(&[])?.caps(), Isolation::Software.requirements())?;
    let (config, _folder) = config(true)?;
    let ended = machine::run(&config).map_err(anyhow::Error::from_boxed)?;
    ensure!(ended == (Stop::PowerOff, None), "{ended:?}");
    Ok(())
}

/// An offset, and what was written there.
type Note = (u64, Vec<u8>);

/// Remembers what is written to it, and reads as its offset in each byte.
#[derive(Default, Clone)]
struct Notes(Arc<Mutex<Vec<Note>>>);

impl CustomDevice for Notes {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((offset, data.to_vec()));
    }
}

fn addresses() -> anyhow::Result<()> {
    let hypervisor = require_caps(&[])?;
    let (config, _folder) = config(false)?;
    let events = Arc::new(EventMonitor::new());
    let mut machine = Machine::build(&hypervisor, &config, &Output::new(config.serial.clone()), &events)?;
    let notes = Notes::default();
    machine.add_memory_device(GpaRange::new(DEVICE.into(), PAGE_SIZE)?, Box::new(notes.clone()))?;
    ensure!(
        machine.add_memory_device(GpaRange::new(0, PAGE_SIZE)?, Box::new(notes.clone())).is_err(),
        "RAM is no place for a device"
    );
    ensure!(machine.run(&events, |_| {})? == Stop::PowerOff);
    let notes = std::mem::take(&mut *notes.0.lock().unwrap_or_else(PoisonError::into_inner));
    // Nobody is at the doorbell, so all ones come from there.
    ensure!(notes == [(8, vec![0xff]), (24, vec![16; 4])], "{notes:?}");
    Ok(())
}
