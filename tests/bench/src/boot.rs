//! How long a guest takes to reach its init, beside QEMU and beside memory that anybody can map.
//!
//! | key | what |
//! |---|---|
//! | `boot.none.qemu_ratio` | `isolation=none`, to QEMU's pc machine with KVM, which enters the same vmlinux by PVH |
//! | `boot.software.none_ratio` | `isolation=software`, to `isolation=none` |
//! | `boot.software.load_share` | the part of that time in which umbra reads the kernel and takes it apart |
//! | `boot.software.copy_share` | the part from there to the first instruction of the guest: making the VM, copying in |
//! | `boot.software.conversion_share` | the part that conversions take inside umbra, by its own statistics |
//!
//! Time runs from the start of the program to the first line of the guest's init on the serial console. All boot the same
//! uncompressed kernel and the same initramfs, with one processor and 512 MiB, in turns; the first round counts for nothing,
//! as it reads programs from the disk. `boot.software.image_ratio` tells what a compressed kernel, as distributions ship it,
//! costs on top: its time to that of the uncompressed one, with `software`.

pub mod machine;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use arch::x86_64::image::KernelImage;

use crate::figures::{Figures, Sample};
use machine::{Boot, Kind, Machines};

/// What is booted.
#[derive(Debug)]
pub struct Files {
    /// The umbra program.
    pub umbra: PathBuf,
    /// A vmlinuz.
    pub kernel: PathBuf,
    /// One that says [`machine::INIT`] when it is reached.
    pub initramfs: PathBuf,
}

/// Times of one kind of machine, in nanoseconds.
#[derive(Debug, Default)]
struct Times {
    init: Vec<f64>,
    to_guest: Vec<f64>,
    converting: Vec<f64>,
}

impl Times {
    fn add(&mut self, boot: &Boot) {
        self.init.push(boot.to_init.as_nanos() as f64);
        self.to_guest.extend(boot.told.map(|told| told.to_guest.as_nanos() as f64));
        self.converting.extend(boot.told.map(|told| told.converting.as_nanos() as f64));
    }
}

/// Boots guests in turns, each `rounds` times and once before that. `folder` is an empty one in memory.
///
/// # Errors
/// Files that can't be read, and a guest that does not boot.
pub fn run(figures: &mut Figures, files: &Files, rounds: usize, folder: &Path) -> Result<()> {
    let Files { umbra, kernel, initramfs } = files;
    let vmlinux = folder.join("vmlinux");
    let vmlinuz = folder.join("vmlinuz");
    let initramfs_here = folder.join("initramfs");
    let file = std::fs::read(kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
    let image = KernelImage::parse(&file).with_context(|| format!("cannot read {}", kernel.display()))?;
    std::fs::write(&vmlinux, image.elf()).with_context(|| format!("cannot write {}", vmlinux.display()))?;
    for (from, to) in [(kernel, &vmlinuz), (initramfs, &initramfs_here)] {
        std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let machines = Machines { umbra, vmlinux: &vmlinux, vmlinuz: &vmlinuz, initramfs: &initramfs_here, folder };

    let mut times: [Times; Kind::ALL.len()] = Default::default();
    let mut loads = Vec::new();
    for round in 0..=rounds {
        let mut line = if round == 0 { "first boots".to_owned() } else { format!("boots, round {round} of {rounds}") };
        for turn in 0..Kind::ALL.len() {
            let kind = Kind::ALL[(round + turn) % Kind::ALL.len()];
            let boot = machines.boot(kind).with_context(|| format!("with {}", kind.name()))?;
            let _ = write!(
                line,
                "{} {} {:.1} s",
                if turn == 0 { ":" } else { "," },
                kind.name(),
                boot.to_init.as_secs_f64()
            );
            if round > 0 {
                times[kind as usize].add(&boot);
            }
        }
        eprintln!("{line}");
        loads.push(load(&vmlinux)?);
    }
    let [qemu, none, software, compressed] = &times;
    figures.add("boot.none.qemu_ratio", Sample::ratio(&none.init, &qemu.init));
    figures.add("boot.software.none_ratio", Sample::ratio(&software.init, &none.init));
    let load = Sample::of(loads.iter().copied()).median;
    let share = |part: Vec<f64>| Sample::of(part.iter().zip(&software.init).map(|(part, whole)| part / whole));
    figures.add("boot.software.load_share", share(vec![load; software.init.len()]));
    figures.add("boot.software.copy_share", share(software.to_guest.iter().map(|time| time - load).collect()));
    figures.add("boot.software.conversion_share", share(software.converting.clone()));
    figures.add("boot.software.image_ratio", Sample::ratio(&compressed.init, &software.init));
    for (kind, times) in Kind::ALL.iter().zip(&times) {
        figures.note(format!("boot.{}.to_init_ns", kind.name()), Sample::of(times.init.iter().copied()));
        if !times.to_guest.is_empty() {
            let sample = Sample::of(times.to_guest.iter().copied());
            figures.note(format!("boot.{}.to_guest_ns", kind.name()), sample);
        }
    }
    Ok(())
}

/// How long the kernel takes to be read and taken apart, in nanoseconds: what umbra does first, done here.
fn load(kernel: &Path) -> Result<f64> {
    let start = Instant::now();
    let file = std::fs::read(kernel)?;
    let image = KernelImage::parse(&file)?;
    let time = start.elapsed();
    drop(image);
    Ok(time.as_nanos() as f64)
}
