//! What the contracts of `tests/kvm` don't reach, because KVM can't be brought to it: hosts that lack something, types of
//! VM that need hardware, answers that the traits don't let through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, VolatileMemory};

use super::*;
use crate::{
    AttributeError, Exit, GpaRange, MapGpaRangeReply, MsrFilter, PAGE_SIZE, PageState, PreFaultError, Region,
    SharedMemory, Slice,
};

const GPA: u64 = 0x10_0000;

fn page() -> GpaRange {
    GpaRange::new(GPA, PAGE_SIZE).unwrap()
}

/// A VM with one page in both backings.
fn vm_with_a_page(vm_type: VmType) -> (Arc<ModelVm>, Arc<SharedMemory>) {
    let vm = ModelHypervisor::new().create(vm_type).unwrap();
    let shared = Arc::new(SharedMemory::new("model", PAGE_SIZE).unwrap());
    let private = vm.create_guest_memfd(PAGE_SIZE).unwrap();
    let region = Region {
        range: page(),
        shared: Some(Slice { backing: shared.clone(), offset: 0 }),
        private: Some(Slice { backing: private, offset: 0 }),
    };
    vm.add_region(0, &region).unwrap();
    (vm, shared)
}

#[track_caller]
fn errno<T>(result: Result<T>, expected: i32) {
    assert_eq!(result.err().and_then(|error| error.errno()), Some(expected));
}

#[test]
fn a_host_that_lacks_something_says_so_as_its_kernel_would() {
    let lacking = |take: fn(&mut MemoryCaps)| {
        let mut caps = ModelHypervisor::new().caps;
        take(&mut caps);
        ModelHypervisor::with_caps(caps).create(VmType::SwProtected).unwrap()
    };
    errno(lacking(|caps| caps.guest_memfd = false).create_guest_memfd(PAGE_SIZE), libc::ENOTTY);
    errno(lacking(|caps| caps.memory_attributes = false).set_attribute(page(), PageState::Shared), libc::ENOTTY);
    errno(lacking(|caps| caps.exit_hypercall = false).exit_on_map_gpa_range(), libc::EINVAL);
    errno(lacking(|caps| caps.msr_filter = false).filter_msrs(&[]), libc::EINVAL);
    errno(lacking(|caps| caps.pre_fault = false).create_vcpu(0).unwrap().pre_fault(page()), libc::ENOTTY);
    let vm = lacking(|caps| caps.user_memory2 = false);
    let private = Some(Slice { backing: vm.create_guest_memfd(PAGE_SIZE).unwrap(), offset: 0 });
    errno(vm.add_region(0, &Region { range: page(), shared: None, private }), libc::ENOTTY);
    let vm = lacking(|caps| caps.max_regions = 2);
    let region = Region { range: page(), shared: None, private: None };
    errno(vm.add_region(2, &region), libc::EINVAL);
    vm.add_region(1, &region).unwrap();

    let mut caps = ModelHypervisor::new().caps;
    caps.vm_types = vec![VmType::Default];
    let refused = ModelHypervisor::with_caps(caps).create_vm(VmType::Tdx);
    assert!(matches!(refused, Err(Error::Missing { capability: Capability::VmType(VmType::Tdx) })));
}

#[test]
fn vcpus_and_interrupt_controllers_come_once_and_in_order() {
    let vm = ModelHypervisor::new().create(VmType::Default).unwrap();
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    errno(vm.register_irqfd(&event, 4), libc::EAGAIN);
    vm.create_irqchip().unwrap();
    vm.register_irqfd(&event, 4).unwrap();
    errno(vm.create_irqchip(), libc::EEXIST);
    vm.create_vcpu(3).unwrap();
    errno(vm.create_vcpu(3), libc::EEXIST);
    let late = ModelHypervisor::new().create(VmType::Default).unwrap();
    late.create_vcpu(0).unwrap();
    errno(late.create_irqchip(), libc::EINVAL);
}

#[test]
fn a_type_without_private_memory_takes_neither_the_attribute_nor_the_region() {
    for vm_type in [VmType::Default, VmType::Sev, VmType::SevEs] {
        let vm = ModelHypervisor::new().create(vm_type).unwrap();
        vm.set_attribute(page(), PageState::Shared).unwrap();
        let refused = vm.set_attribute(page(), PageState::Private);
        assert!(matches!(refused, Err(Error::Attribute { source: AttributeError::Invalid, .. })));
        let private = Some(Slice { backing: vm.create_guest_memfd(PAGE_SIZE).unwrap(), offset: 0 });
        errno(vm.add_region(0, &Region { range: page(), shared: None, private }), libc::EINVAL);
        assert!(vm.private_runs().is_empty() && vm.regions().is_empty());
    }
}

#[test]
fn attributes_need_no_region_and_have_no_upper_bound() {
    let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
    let all = GpaRange::new(0, 1 << 63).unwrap();
    vm.set_attribute(all, PageState::Private).unwrap();
    vm.set_attribute(page(), PageState::Shared).unwrap();
    assert_eq!(vm.private_runs(), [(0, GPA), (GPA + PAGE_SIZE, 1 << 63)]);
    assert_eq!(vm.attribute(GPA), PageState::Shared);
}

#[test]
fn confidential_memory_is_populated_once_the_guest_is_launched() {
    for vm_type in VmType::ALL {
        let vm = ModelHypervisor::new().create(vm_type).unwrap();
        let shared = Some(Slice { backing: Arc::new(SharedMemory::new("model", PAGE_SIZE).unwrap()), offset: 0 });
        vm.add_region(0, &Region { range: page(), shared, private: None }).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let before = match vm_type {
            VmType::Default | VmType::SwProtected => Ok(PAGE_SIZE),
            _ => Err(libc::EOPNOTSUPP),
        };
        assert_eq!(vcpu.pre_fault(page()).map_err(|error| error.errno().unwrap()), before, "{vm_type}");
        vm.finalise();
        let after = match vm_type {
            VmType::Sev | VmType::SevEs => Err(libc::EOPNOTSUPP),
            _ => Ok(PAGE_SIZE),
        };
        assert_eq!(vcpu.pre_fault(page()).map_err(|error| error.errno().unwrap()), after, "{vm_type}");
    }
}

#[test]
fn populating_says_what_is_not_there() {
    let (vm, _) = vm_with_a_page(VmType::SwProtected);
    let vcpu = vm.create_vcpu(0).unwrap();
    let fails = |gpa| match vcpu.pre_fault(GpaRange::new(gpa, PAGE_SIZE).unwrap()) {
        Err(Error::PreFault { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(fails(GPA + PAGE_SIZE), PreFaultError::NoRegion));
    vm.set_attribute(GpaRange::new(GPA + PAGE_SIZE, PAGE_SIZE).unwrap(), PageState::Private).unwrap();
    assert!(matches!(fails(GPA + PAGE_SIZE), PreFaultError::NoBacking));
    assert_eq!(vcpu.pre_fault(GpaRange::new(GPA, 3 * PAGE_SIZE).unwrap()).unwrap(), PAGE_SIZE);
}

#[test]
fn an_answer_that_is_none_fails_the_run() {
    for vm_type in [VmType::SevSnp, VmType::Tdx] {
        let (vm, _) = vm_with_a_page(vm_type);
        vm.exit_on_map_gpa_range().unwrap();
        let script = vm.script(0);
        script.extend([vm.announcement(page(), PageState::Private), vm.announcement(page(), PageState::Private)]);
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let Exit::MapGpaRange(request) = vcpu.run().unwrap() else { panic!("no request") };
        *request.ret = 99;
        errno(vcpu.run().map(drop), libc::EINVAL);
        let Exit::MapGpaRange(request) = vcpu.run().unwrap() else { panic!("no request") };
        request.reply(MapGpaRangeReply::Done);
        assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
        assert_eq!(script.take_outcomes(), [Outcome::Answered(Answer::Granted)]);
    }
}

#[test]
fn a_general_protection_fault_takes_the_place_of_the_action_it_comes_before() {
    let (vm, _) = vm_with_a_page(VmType::SevSnp);
    let script = vm.script(0);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let two_pages = vec![1; 2 * PAGE_SIZE as usize];
    script.extend([Action::write(GPA, two_pages), Action::read(GPA, 1)]);
    // The second page is nowhere: the first is written, and stays so.
    assert!(matches!(vcpu.run().unwrap(), Exit::MmioWrite { gpa, .. } if gpa == GPA + PAGE_SIZE));
    vcpu.inject_general_protection().unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
    assert_eq!(script.take_outcomes(), [Outcome::GeneralProtection, Outcome::Read(vec![1])]);
    // It waits for a guest that has nothing to do.
    vcpu.inject_general_protection().unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
    script.extend([Action::read(GPA, 1), Action::read(GPA, 1)]);
    assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
    assert_eq!(script.take_outcomes(), [Outcome::GeneralProtection, Outcome::Read(vec![1])]);
}

#[test]
fn a_cleared_script_gives_up_what_it_had_begun() {
    let (vm, _) = vm_with_a_page(VmType::SwProtected);
    let script = vm.script(0);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    script.extend([Action::read(GPA + PAGE_SIZE, 4), Action::read(GPA, 4)]);
    assert!(matches!(vcpu.run().unwrap(), Exit::MmioRead { .. }));
    assert_eq!(script.waiting(), 1);
    script.clear();
    script.push(Action::read(GPA, 2));
    assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
    assert_eq!(script.take_outcomes(), [Outcome::Read(vec![0, 0])]);
}

#[test]
fn an_instruction_without_memory_cannot_be_emulated_and_mmio_comes_in_words() {
    let (vm, _) = vm_with_a_page(VmType::SwProtected);
    let script = vm.script(0);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    script.push(Action::execute(GPA - 1));
    assert!(matches!(vcpu.run().unwrap(), Exit::InternalError { suberror: 1 }));
    script.clear();
    // Three bytes before the page, eleven before those.
    script.push(Action::read(GPA - 14, 16));
    for (gpa, size, byte) in [(GPA - 14, 8, 1), (GPA - 6, 6, 2)] {
        let Exit::MmioRead { gpa: at, data } = vcpu.run().unwrap() else { panic!("no MMIO") };
        assert_eq!((at, data.len()), (gpa, size));
        assert!(data.iter().all(|byte| *byte == 0xff));
        data.fill(byte);
    }
    assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
    assert_eq!(script.take_outcomes(), [Outcome::Read([vec![1; 8], vec![2; 6], vec![0; 2]].concat())]);
}

#[test]
fn a_filter_replaces_the_last_one() {
    let vm = ModelHypervisor::new().create(VmType::Default).unwrap();
    let filter = |first| MsrFilter { first, count: u32::MAX - first, reads: true };
    vm.filter_msrs(&[filter(5)]).unwrap();
    vm.filter_msrs(&[filter(6)]).unwrap();
    let script = vm.script(0);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    script.extend([Action::ReadMsr { index: 5 }, Action::ReadMsr { index: 6 }]);
    vcpu.set_msr(5, 55).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::MsrRead(exit) if exit.index == 6));
    assert_eq!(script.take_outcomes(), [Outcome::MsrRead(55)]);
}

/// Ends the threads of a test, also when it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Several vCPUs write to a page as fast as they can while its attribute goes back and forth: once it is set, nothing is
/// written to the side that the page left.
#[test]
fn no_access_comes_after_the_attribute_is_set() {
    const VCPUS: u8 = 3;
    const FLIPS: u64 = 100;
    let (vm, shared) = vm_with_a_page(VmType::SwProtected);
    let over = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(60);
    let read = || shared.mapping().as_volatile_slice().read_obj::<[u64; VCPUS as usize]>(0).unwrap();
    thread::scope(|scope| {
        let _over = Over(&over);
        for id in 0..VCPUS {
            let script = vm.script(id);
            let mut vcpu = vm.create_vcpu(id).unwrap();
            let over = &over;
            scope.spawn(move || {
                let mut count = 0u64;
                while !over.load(Ordering::Relaxed) {
                    count += 1;
                    script.push(Action::write(GPA + 8 * u64::from(id), count.to_le_bytes()));
                    assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
                    assert_eq!(script.take_outcomes(), [Outcome::Written]);
                }
            });
        }
        let mut flips = 0;
        while flips < FLIPS || read().contains(&0) {
            assert!(Instant::now() < deadline, "after {flips} flips the vCPUs have written {:?}", read());
            vm.set_attribute(page(), PageState::Private).unwrap();
            let left = read();
            thread::yield_now();
            assert_eq!(read(), left);
            vm.set_attribute(page(), PageState::Shared).unwrap();
            flips += 1;
        }
    });
}
