//! A: attributes.

use hypervisor::{Capability, VmType};
use kvm_bindings::{KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes as Attributes};
use kvm_tests::PAGE;
use kvm_tests::expect;
use kvm_tests::raw::Vm;
use kvm_tests::requirement::open_kvm;
use kvm_tests::trial::trial;
use libtest_mimic::Trial;
use rustix::io::Errno;

use crate::r::{GPA, SIZE};

const PRIVATE: u64 = KVM_MEMORY_ATTRIBUTE_PRIVATE as u64;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a1_one_attribute_exists_and_no_flag", a1),
        trial("a2_ranges_are_whole_pages_that_do_not_wrap", a2),
        trial("a3_no_slot_is_needed_and_no_address_is_too_high", a3),
        trial("a4_a_vm_without_private_memory_has_no_attribute", a4),
    ]
}

fn vm(vm_type: VmType) -> anyhow::Result<Vm> {
    let kvm = open_kvm(&[Capability::VmType(vm_type), Capability::MemoryAttributes])?;
    Ok(Vm::create(&kvm, vm_type.number())?)
}

fn private(address: u64, size: u64) -> Attributes {
    Attributes { address, size, attributes: PRIVATE, flags: 0 }
}

fn a1() -> anyhow::Result<()> {
    let vm = vm(VmType::SwProtected)?;
    for bit in 0..u64::BITS {
        let attributes = 1 << bit;
        let set = vm.set_attributes(Attributes { attributes, ..private(GPA, SIZE) });
        if attributes == PRIVATE {
            expect::success("private", set)?;
        } else {
            expect::failure(format!("attribute {attributes:#x}"), Errno::INVAL, set)?;
            let mixed = Attributes { attributes: attributes | PRIVATE, ..private(GPA, SIZE) };
            expect::failure(format!("private and {attributes:#x}"), Errno::INVAL, vm.set_attributes(mixed))?;
        }
        let flagged = Attributes { flags: 1 << bit, ..private(GPA, SIZE) };
        expect::failure(format!("flag {:#x}", flagged.flags), Errno::INVAL, vm.set_attributes(flagged))?;
    }
    expect::success("shared", vm.set_attributes(Attributes { attributes: 0, ..private(GPA, SIZE) }))
}

fn a2() -> anyhow::Result<()> {
    let vm = vm(VmType::SwProtected)?;
    let top = !(PAGE - 1);
    let refused =
        [(GPA, 0), (GPA, 1), (GPA, PAGE + 1), (GPA + 1, PAGE), (GPA - 1, PAGE + 1), (top, PAGE), (top, 2 * PAGE)];
    for (address, size) in refused {
        let case = format!("{size:#x} bytes at {address:#x}");
        expect::failure(case, Errno::INVAL, vm.set_attributes(private(address, size)))?;
    }
    expect::success("one page", vm.set_attributes(private(GPA, PAGE)))
}

fn a3() -> anyhow::Result<()> {
    let vm = vm(VmType::SwProtected)?;
    for address in [0, GPA, 1 << 51, 1 << 52, 1 << 63, 0u64.wrapping_sub(2 * PAGE)] {
        for _ in 0..2 {
            expect::success(format!("a page at {address:#x}"), vm.set_attributes(private(address, PAGE)))?;
        }
    }
    Ok(())
}

fn a4() -> anyhow::Result<()> {
    let vm = vm(VmType::Default)?;
    expect::failure("private", Errno::INVAL, vm.set_attributes(private(GPA, SIZE)))?;
    expect::success("shared", vm.set_attributes(Attributes { attributes: 0, ..private(GPA, SIZE) }))
}
