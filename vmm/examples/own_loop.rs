//! The memory core in a VMM that has its own VM, vCPU and exit loop, on kvm-ioctls: what such a VMM adds to its loop.
//!
//! The guest announces that a page becomes private, and then touches it where it is shared. It needs a KVM with
//! software-protected VMs: `cargo build -p vmm --examples`, then `cargo lab sh -- $PWD/target/debug/examples/own_loop`.
#![expect(unsafe_code, reason = "only who owns the vCPUs can say when the VM's memory may go")]

use arch::x86_64::private_faults::{ConversionRequest, Refusal, from_map_gpa_range, from_memory_fault_flags};
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::kvm::KvmHypervisor;
use hypervisor::x86_64::{Registers, Segment};
use hypervisor::{Capability, Hypervisor, MapGpaRange, MapGpaRangeReply, VmType};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::GuestAddress;
use vmm::memory::{GuestRam, RamOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Request = std::result::Result<Option<ConversionRequest>, Refusal>;

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x1000;
const SECRET: u64 = 2 << 20;
/// The hypercall by which guests announce conversions (Linux `Documentation/virt/kvm/x86/hypercalls.rst`).
const MAP_GPA_RANGE: u64 = 12;
/// 32-bit code: `mov eax, 12; mov ebx, SECRET; mov ecx, 1; mov edx, 16; vmmcall; out 1, al`, and
/// `mov al, [SECRET]; out 2, al`.
const PROGRAM: [u8; 32] = [
    0xb8, 12, 0, 0, 0, 0xbb, 0, 0, 0x20, 0, 0xb9, 1, 0, 0, 0, 0xba, 16, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xe6, 1, //
    0xa0, 0, 0, 0x20, 0, 0xe6, 2,
];

/// Runs the example.
pub fn main() -> Result<()> {
    // What the VMM has already. Its VM must be of a type whose guests have private memory.
    let kvm = Kvm::new()?;
    let fd = kvm.create_vm_with_type(VmType::SwProtected.number())?;
    let mut vcpu = fd.create_vcpu(0)?;

    // The memory core operates the same VM, and puts RAM before the guest.
    let host = KvmHypervisor::open()?;
    // SAFETY: it is such a VM, it has no other slots, and `ram` keeps what is returned until the vCPU has run for the last time.
    let vm = unsafe { host.adopt(&fd, VmType::SwProtected) }?;
    vm.exit_on_map_gpa_range()?;
    let layout = MemoryLayout::new(Isolation::Software, RAM, 40)?;
    let ram = GuestRam::new(vm, layout, RamOptions::default())?;

    let mut program = PROGRAM;
    if !host.caps().has(Capability::AmdProcessor) {
        program[22] = 0xc1; // vmcall
    }
    ram.write(CODE, &program)?;
    ram.write(SECRET, &[7])?;
    enter_flat_protected_mode(&vcpu)?;
    run(&mut vcpu, &ram)
}

/// The loop. Two of its arms are the memory core's; the rest is the VMM's own.
fn run(vcpu: &mut VcpuFd, ram: &GuestRam) -> Result<()> {
    // For each device its own. A device never sees a private page.
    let device = ram.devices().view("device");
    let device_sees = || device.read_obj::<u8>(GuestAddress(SECRET));
    loop {
        match vcpu.run()? {
            VcpuExit::Hypercall(call) if call.nr == MAP_GPA_RANGE => {
                let [gpa, pages, attributes, ..] = call.args;
                // From here on the answer is a refusal, whatever happens before the reply.
                let exit = MapGpaRange::new(gpa, pages, attributes, VmType::SwProtected.is_plain(), call.ret);
                exit.reply(announced(ram, from_map_gpa_range(ram.layout(), gpa, pages, attributes))?);
            }
            // Once it is converted, the access is made again. One that can't be granted is the guest's end here.
            VcpuExit::MemoryFault { flags, gpa, size } => {
                ram.convert(from_memory_fault_flags(ram.layout(), flags, gpa, size)?)?;
            }
            VcpuExit::IoOut(1, answer) => {
                let refused = device_sees().err().ok_or("the device sees a private page")?;
                println!("announced: the guest is told {}, the device: {refused}", answer[0]);
                assert_eq!(answer[0], 0);
            }
            // Not the 7 of before: what changes its state loses its contents.
            VcpuExit::IoOut(2, sees) => {
                println!("touched: the guest sees {}, the device {}", sees[0], device_sees()?);
                assert_eq!([sees[0], device_sees()?], [0, 0]);
                return Ok(());
            }
            other => return Err(format!("the guest left with {other:?}").into()),
        }
    }
}

/// What an announcement comes to. Whatever is wrong with it is the guest's to hear of, unless nothing can go on.
fn announced(ram: &GuestRam, request: Request) -> Result<MapGpaRangeReply> {
    match request.map(|request| request.map_or(Ok(false), |request| ram.convert(request))) {
        Ok(Ok(_)) => Ok(MapGpaRangeReply::Done),
        Ok(Err(error)) if error.is_fatal() => Err(error.into()),
        _ => Ok(MapGpaRangeReply::Invalid),
    }
}

fn enter_flat_protected_mode(vcpu: &VcpuFd) -> Result<()> {
    let code =
        Segment { limit: u32::MAX, selector: 8, type_: 0xb, present: 1, db: 1, s: 1, g: 1, ..Segment::default() };
    let data = Segment { selector: 16, type_: 3, ..code };
    let mut special = vcpu.get_sregs()?;
    (special.cs, special.ds, special.es, special.ss) = (code, data, data, data);
    special.cr0 |= 1;
    vcpu.set_sregs(&special)?;
    Ok(vcpu.set_regs(&Registers { rip: CODE, rflags: 2, ..Registers::default() })?)
}
