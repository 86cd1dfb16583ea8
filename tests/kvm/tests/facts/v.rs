//! V: VM types.

use kvm_bindings::{KVM_CAP_VM_TYPES, KVM_X86_DEFAULT_VM};
use kvm_tests::expect;
use kvm_tests::raw::Vm;
use kvm_tests::requirement::open_kvm;
use kvm_tests::trial::trial;
use libtest_mimic::Trial;
use rustix::io::Errno;

pub fn trials() -> Vec<Trial> {
    vec![trial("v1_vm_types_accepted_are_those_advertised", v1_vm_types_accepted_are_those_advertised)]
}

/// A type is accepted if and only if its bit is advertised, and no number is cut to 32 bits or taken modulo 32 to make
/// it fit.
fn v1_vm_types_accepted_are_those_advertised() -> anyhow::Result<()> {
    let kvm = open_kvm(&[])?;
    // Kernels before 6.8 advertise nothing and have ordinary VMs only.
    let advertised = kvm.check_extension_raw(KVM_CAP_VM_TYPES.into()) as u32 | 1 << KVM_X86_DEFAULT_VM;
    for vm_type in 0..u32::BITS {
        let case = format!("a VM of type {vm_type}, types advertised: {advertised:#x}");
        let vm = Vm::create(&kvm, vm_type.into());
        if advertised & (1 << vm_type) != 0 {
            expect::success(case, vm)?;
        } else {
            expect::failure(case, Errno::INVAL, vm)?;
        }
    }
    for vm_type in [32, 33, 64, 1 << 32, (1 << 32) + 1, u64::MAX] {
        let case = format!("a VM of type {vm_type:#x}");
        expect::failure(case, Errno::INVAL, Vm::create(&kvm, vm_type))?;
    }
    Ok(())
}
