//! What a guest waits for a hypercall that converts, under `software`.
//!
//! | key | what is timed |
//! |---|---|
//! | `conversion.round_trip.empty_ns` | a hypercall that KVM answers itself, and that does nothing |
//! | `conversion.round_trip.no_op_ns` | an announcement of a page that is private already: to the VMM and back |
//! | `conversion.round_trip.convert_ns` | an announcement that converts an untouched page, to private and to shared in turns |
//!
//! A few bytes of guest code make one hypercall after the other; the time is that from entry to the last one's return,
//! divided by their number.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use arch::x86_64::private_faults::from_map_gpa_range;
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::x86_64::Registers;
use hypervisor::{Exit, Hypervisor, MapGpaRangeReply, Vcpu, Vm, VmType};
use vmm::memory::{GuestRam, RamOptions};

use crate::figures::{Figures, Sample};

/// RAM of the guest.
const RAM: u64 = 64 << 20;

/// Bits of the guest's physical addresses.
const ADDRESS_BITS: u8 = 40;

/// Where its code lies, and the page that it converts.
const CODE: u64 = 0x1000;
const PAGE: u64 = 16 << 20;

/// KVM's numbers of hypercalls: one that does nothing, and the announcement of a conversion.
const VAPIC_POLL_IRQ: u64 = 1;
const MAP_GPA_RANGE: u64 = 12;

/// Of the announcement: the pages are to be private.
const PRIVATE: u64 = 1 << 4;

/// Hypercalls of one round, an even number of them, and rounds.
const CALLS: u64 = 400;
const ROUNDS: usize = 15;

/// The guest's code, in real mode. EBP is the number of the hypercall, ESI what changes in its third argument each time,
/// EDI how many there are.
fn code(amd: bool) -> [u8; 15] {
    let hypercall = if amd { 0xd9 } else { 0xc1 };
    [
        0x66, 0x89, 0xe8, //      next: mov eax, ebp
        0x0f, 0x01, hypercall, //       vmmcall or vmcall
        0x66, 0x31, 0xf2, //            xor edx, esi
        0x66, 0x4f, //                  dec edi
        0x75, 0xf3, //                  jnz next
        0xe6, 0x01, //                  out 1, al
    ]
}

struct Guest {
    ram: GuestRam,
    vcpu: Box<dyn Vcpu>,
    _vm: Arc<dyn Vm>,
}

impl Guest {
    fn new(hypervisor: &dyn Hypervisor) -> Result<Self> {
        let vm = hypervisor.create_vm(VmType::SwProtected)?;
        let layout = MemoryLayout::new(Isolation::Software, RAM, ADDRESS_BITS)?;
        let ram = GuestRam::new(vm.clone(), layout, RamOptions::default())?;
        ram.write(CODE, &code(hypervisor.caps().amd_processor))?;
        vm.exit_on_map_gpa_range()?;
        let vcpu = vm.create_vcpu(0)?;
        let mut special = vcpu.special_registers()?;
        (special.cs.base, special.cs.selector) = (0, 0);
        vcpu.set_special_registers(&special)?;
        Ok(Self { ram, vcpu, _vm: vm })
    }

    /// Makes all hypercalls of a round, and returns nanoseconds for each.
    fn round(&mut self, number: u64, attributes: u64, change: u64) -> Result<f64> {
        let (rdx, rsi, rdi) = (attributes, change, CALLS);
        let (rip, rbp, rbx, rcx) = (CODE, number, PAGE, 1);
        self.vcpu.set_registers(&Registers { rip, rflags: 2, rbp, rbx, rcx, rdx, rsi, rdi, ..Default::default() })?;
        let start = Instant::now();
        loop {
            match self.vcpu.run()? {
                Exit::MapGpaRange(exit) => {
                    let request = from_map_gpa_range(self.ram.layout(), exit.gpa, exit.pages, exit.attributes);
                    self.ram.convert(request?.context("an announcement of nothing")?)?;
                    exit.reply(MapGpaRangeReply::Done);
                }
                Exit::IoOut { .. } => break,
                Exit::Interrupted => {}
                other => bail!("the guest ended with {other:?}"),
            }
        }
        let time = start.elapsed().as_nanos() as f64 / CALLS as f64;
        let last = self.vcpu.registers()?.rax as u32;
        ensure!(last == 0, "the guest's last hypercall returned {last:#x}");
        Ok(time)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// A host without software-protected VMs; a guest that does not do what it should.
pub fn run(figures: &mut Figures, hypervisor: &dyn Hypervisor) -> Result<()> {
    eprintln!("round trips of a guest's hypercalls");
    let mut guest = Guest::new(hypervisor)?;
    let [mut empty, mut no_op, mut convert] = <[Vec<f64>; 3]>::default();
    let converted = |guest: &Guest| guest.ram.statistics().conversions_explicit;
    // From here on the page is private before each round, and afterwards.
    guest.round(MAP_GPA_RANGE, PRIVATE, 0)?;
    for _ in 0..ROUNDS {
        empty.push(guest.round(VAPIC_POLL_IRQ, 0, 0)?);
        no_op.push(guest.round(MAP_GPA_RANGE, PRIVATE, 0)?);
        let before = converted(&guest);
        convert.push(guest.round(MAP_GPA_RANGE, 0, PRIVATE)?);
        ensure!(converted(&guest) == before + CALLS, "not every announcement converted the page");
    }
    for (name, times) in [("empty", empty), ("no_op", no_op), ("convert", convert)] {
        figures.note(format!("conversion.round_trip.{name}_ns"), Sample::of(times));
    }
    Ok(())
}
