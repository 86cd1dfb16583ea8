//! A VM with one private page: what its guest writes there, this program never sees.
//!
//! On KVM, if this host's has software-protected VMs, else on the model. `cargo run -p hypervisor --example private_page`

use std::sync::Arc;

use hypervisor::kvm::KvmHypervisor;
use hypervisor::model::{Action, ModelHypervisor, Outcome};
use hypervisor::x86_64::Registers;
use hypervisor::{
    Capability, Exit, GpaRange, Hypervisor, PAGE_SIZE, PageState, Region, SharedMemory, Slice, Vm, VmType,
};
use vm_memory::{Bytes, VolatileMemory};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Where the guest's code lies, and the page that is to be private.
const CODE: u64 = 0x1000;
const SECRET: u64 = 0x2000;

/// 16-bit code: `mov byte [SECRET], 42`, `mov al, [SECRET]`, `out 1, al`.
const PROGRAM: [u8; 10] = [0xc6, 0x06, 0x00, 0x20, 42, 0xa0, 0x00, 0x20, 0xe6, 0x01];

/// Runs the example, and says on what.
pub fn main() -> Result<()> {
    let (host, [guest_sees, host_sees]) = match KvmHypervisor::open() {
        Ok(kvm) if kvm.caps().has(Capability::VmType(VmType::SwProtected)) => ("KVM", on_kvm(&kvm)?),
        _ => ("the model", on_the_model()?),
    };
    println!("on {host}: the guest wrote 42 and sees {guest_sees}; this program sees {host_sees}");
    assert_eq!([guest_sees, host_sees], [42, 7]);
    Ok(())
}

fn on_kvm(kvm: &KvmHypervisor) -> Result<[u8; 2]> {
    let vm = kvm.create_vm(VmType::SwProtected)?;
    let memory = private_page(&*vm)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut special = vcpu.special_registers()?;
    (special.cs.base, special.cs.selector) = (0, 0);
    vcpu.set_special_registers(&special)?;
    vcpu.set_registers(&Registers { rip: CODE, rflags: 2, ..Default::default() })?;
    let guest_sees = match vcpu.run()? {
        Exit::IoOut { data, .. } => data[0],
        other => return Err(format!("the guest left with {other:?}").into()),
    };
    Ok([guest_sees, host_sees(&memory)?])
}

fn on_the_model() -> Result<[u8; 2]> {
    let vm = ModelHypervisor::new().create(VmType::SwProtected)?;
    let memory = private_page(&*vm)?;
    let script = vm.script(0);
    script.extend([Action::write(SECRET, [42]), Action::read(SECRET, 1)]);
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.run()?;
    match script.take_outcomes().as_slice() {
        [Outcome::Written, Outcome::Read(bytes)] => Ok([bytes[0], host_sees(&memory)?]),
        other => Err(format!("the guest did {other:?}").into()),
    }
}

/// Gives a VM, on whatever hypervisor, a shared page with the program, and a page with two backings that is private.
fn private_page(vm: &dyn Vm) -> Result<Arc<SharedMemory>> {
    let shared = Arc::new(SharedMemory::new("example", 2 * PAGE_SIZE)?);
    let private = vm.create_guest_memfd(PAGE_SIZE)?;
    let mapping = shared.mapping().as_volatile_slice();
    mapping.write_slice(&PROGRAM, 0)?;
    mapping.write_obj(7u8, PAGE_SIZE as usize)?;

    let code = Region {
        range: GpaRange::new(CODE, PAGE_SIZE)?,
        shared: Some(Slice { backing: shared.clone(), offset: 0 }),
        private: None,
    };
    let secret = Region {
        range: GpaRange::new(SECRET, PAGE_SIZE)?,
        shared: Some(Slice { backing: shared.clone(), offset: PAGE_SIZE }),
        private: Some(Slice { backing: private, offset: 0 }),
    };
    vm.add_region(0, &code)?;
    vm.add_region(1, &secret)?;
    vm.set_attribute(secret.range, PageState::Private)?;
    Ok(shared)
}

fn host_sees(memory: &SharedMemory) -> Result<u8> {
    Ok(memory.mapping().as_volatile_slice().read_obj(PAGE_SIZE as usize)?)
}
