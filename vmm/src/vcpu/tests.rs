//! vCPUs that repeat themselves, and a launch that a pause interrupts.

use super::conversions::MAX_REPEATED_FAULTS;
use super::*;
use arch::x86_64::map::{LAUNCH_PORT, RESET_PORT, RESET_VALUE};
use arch::x86_64::{Isolation, MemoryLayout};
use hypervisor::model::{Action, ModelHypervisor, ModelVm};
use hypervisor::x86_64::{CpuidEntry, Registers, SpecialRegisters};
use hypervisor::{Exit, GpaRange, Interrupter, MemoryFault, Vm, VmType};
use std::sync::atomic::Ordering;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::SerialConfig;
use crate::console::Output;
use crate::devices::cmos::Cmos;
use crate::devices::custom::CustomDevices;
use crate::devices::manager::DeviceManager;
use crate::devices::serial::SerialDevice;
use crate::devices::virtio::pci::AccessPlatform;
use crate::memory::RamOptions;
use crate::memory::conversion::{Policy, Rule};

const PAGE: u64 = 2 << 20;

/// A vCPU that makes the same access over and over, whatever is done about it.
#[derive(Default)]
struct Stubborn {
    runs: u32,
    /// How often it takes its faults, before it can't any more.
    takes: u32,
    protection_faults: Arc<std::sync::atomic::AtomicU32>,
}

/// Nobody interrupts these vCPUs.
struct Never;

impl Interrupter for Never {
    fn set(&self, _: bool) {}
}

impl Vcpu for Stubborn {
    fn run(&mut self) -> hypervisor::Result<Exit<'_>> {
        self.runs += 1;
        assert!(self.runs < 10_000, "nobody ends it");
        Ok(Exit::MemoryFault(MemoryFault { gpa: PAGE, size: 4096, private: true }))
    }
    fn inject_general_protection(&mut self) -> hypervisor::Result<bool> {
        Ok(self.protection_faults.fetch_add(1, Ordering::Relaxed) >= self.takes)
    }
    fn registers(&self) -> hypervisor::Result<Registers> {
        Ok(Registers { rip: 0x1234, ..Registers::default() })
    }
    fn set_cpuid(&self, _: &[CpuidEntry]) -> hypervisor::Result<()> {
        Ok(())
    }
    fn set_registers(&self, _: &Registers) -> hypervisor::Result<()> {
        Ok(())
    }
    fn special_registers(&self) -> hypervisor::Result<SpecialRegisters> {
        Ok(SpecialRegisters::default())
    }
    fn set_special_registers(&self, _: &SpecialRegisters) -> hypervisor::Result<()> {
        Ok(())
    }
    fn set_msr(&self, _: u32, _: u64) -> hypervisor::Result<()> {
        Ok(())
    }
    fn accept_msr_write(&mut self) {}
    fn interrupter(&self) -> hypervisor::Result<Arc<dyn Interrupter>> {
        Ok(Arc::new(Never))
    }
    fn start_at_once(&self) -> hypervisor::Result<()> {
        Ok(())
    }
    fn inject_nmi(&self) -> hypervisor::Result<()> {
        Ok(())
    }
    fn excuse_pause(&self) -> hypervisor::Result<()> {
        Ok(())
    }
    fn pre_fault(&self, range: GpaRange) -> hypervisor::Result<u64> {
        Ok(range.len())
    }
}

/// What a vCPU works with, in a guest that has been launched.
pub(crate) fn context(policy: Policy) -> VcpuContext {
    let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
    let context = context_in(vm, policy);
    context.ram.make_all_private().unwrap();
    context
}

/// The same in this VM, and not launched.
pub(crate) fn context_in(vm: Arc<ModelVm>, policy: Policy) -> VcpuContext {
    let layout = MemoryLayout::new(Isolation::Software, 4 << 20, 48).unwrap();
    vm.create_irqchip().unwrap();
    let ram = Arc::new(GuestRam::new(vm.clone(), layout, RamOptions { policy, ..RamOptions::default() }).unwrap());
    let control = Arc::new(Control::new(vec![Arc::new(Never)], true));
    let output = Output::new(SerialConfig::Null).writer(control.clone()).unwrap();
    let serial = SerialDevice::new(EventFd::new(EFD_NONBLOCK).unwrap(), output);
    let manager = DeviceManager::new(vm, ram.devices().clone(), AccessPlatform::Required, Arc::default()).unwrap();
    let devices =
        Arc::new(Devices { serial, console: None, cmos: Cmos::new(), manager, custom: CustomDevices::default() });
    VcpuContext {
        id: 0,
        ram,
        devices,
        control,
        starts: Arc::new(Starts::new(Vec::new())),
        phase: Phase::Running,
        window: None,
    }
}

#[test]
fn the_window_goes_when_the_launch_code_is_done_and_the_port_works_once() {
    let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
    let range = GpaRange::new(1 << 46, PAGE).unwrap();
    let window = || LaunchWindow::open(vm.clone(), range);
    let mut context = VcpuContext { phase: Phase::Launching, ..context_in(vm.clone(), Policy::default()) };
    context.window = Some(window().unwrap());
    assert!(window().is_err(), "it is there");
    let vcpu = vm.create_vcpu(0).unwrap();
    let port = |port, value| Action::PortWrite { port, data: vec![value] };
    for action in [port(LAUNCH_PORT, 0), port(LAUNCH_PORT, 0), port(RESET_PORT, RESET_VALUE)] {
        vm.script(0).push(action);
    }
    assert_eq!(run(vcpu, context).unwrap(), Some(Stop::Reset));
    window().unwrap();
}

#[test]
fn a_fault_that_comes_again_and_again_ends_in_an_error() {
    let error = run(Box::new(Stubborn::default()), context(Policy::default())).unwrap_err();
    assert_eq!(error.to_string(), "vCPU 0 stopped at 0x1234: its access to 0x200000 faults again and again");
}

#[test]
fn a_guest_that_can_not_take_the_fault_of_a_refused_access_ends_in_an_error() {
    let policy = Policy { implicit: Rule::Refuse, ..Policy::default() };
    // Each one that it takes is progress, however many there are.
    let vcpu = Stubborn { takes: 500, ..Stubborn::default() };
    let protection_faults = vcpu.protection_faults.clone();
    let error = run(Box::new(vcpu), context(policy)).unwrap_err();
    assert!(error.to_string().ends_with("its access to 0x200000 faults again and again"), "{error}");
    assert_eq!(protection_faults.load(Ordering::Relaxed), 500 + MAX_REPEATED_FAULTS + 1);
}
