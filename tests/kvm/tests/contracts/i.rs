//! I: interrupt lines, message routes and events at addresses.

use std::os::fd::AsFd;

use std::fs::File;
use std::time::Duration;

use hypervisor::{Error, INTERRUPT_PINS, MAX_GSI, MsiRoute, VmType};
use kvm_tests::backend::{Backend, TestVm};
use kvm_tests::expect;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::Contract;

pub const CONTRACTS: &[Contract] = &[
    ("i1_a_line_takes_an_event_and_gives_it_back", i1_lines),
    ("i2_messages_have_lines_of_their_own", i2_routes),
    ("i3_an_address_has_one_event", i3_addresses),
];

/// Only on real KVM: the model's processors wait for nobody.
pub const ON_KVM: &[Contract] = &[("i4_a_processor_that_waits_for_init_goes_without_an_nmi", i4_waiting)];

fn vm(backend: &Backend) -> anyhow::Result<TestVm> {
    let vm = backend.create_vm(VmType::Default)?;
    vm.vm().create_irqchip()?;
    Ok(vm)
}

fn refused(case: &str, result: hypervisor::Result<()>, expected: Errno) -> anyhow::Result<()> {
    let found = result.err().and_then(|error: Error| error.errno());
    expect::equal(case, found, Some(expected.raw_os_error()))
}

/// An event is wired once, by whatever descriptor; a line may have several.
fn i1_lines(backend: &Backend) -> anyhow::Result<()> {
    let vm = vm(backend)?;
    let (first, second) = (EventFd::new(EFD_CLOEXEC)?, EventFd::new(EFD_CLOEXEC)?);
    vm.vm().register_irqfd(&first, 5)?;
    vm.vm().register_irqfd(&second, 5)?;
    refused("a second line", vm.vm().register_irqfd(&first.try_clone()?, 6), Errno::BUSY)?;
    vm.vm().unregister_irqfd(&first.try_clone()?, 5)?;
    vm.vm().register_irqfd(&first, INTERRUPT_PINS)?;
    // What is not there, there is nothing to undo of.
    vm.vm().unregister_irqfd(&first, 5)?;
    refused("the line it has", vm.vm().register_irqfd(&first, INTERRUPT_PINS), Errno::BUSY)
}

fn i2_routes(backend: &Backend) -> anyhow::Result<()> {
    let vm = vm(backend)?;
    let route = |gsi| MsiRoute { gsi, address: 0xfee0_0000, data: 0x4041 };
    let all: Vec<MsiRoute> = (INTERRUPT_PINS..=MAX_GSI - 2 * INTERRUPT_PINS).map(route).collect();
    for routes in [&[route(INTERRUPT_PINS), route(100)][..], &all, &[route(MAX_GSI)], &[]] {
        vm.vm().set_msi_routes(routes)?;
    }
    // Whatever a guest writes into its table is a route.
    vm.vm().set_msi_routes(&[MsiRoute { gsi: 24, address: u64::MAX, data: u32::MAX }])?;
    for gsis in [&[0][..], &[INTERRUPT_PINS - 1], &[MAX_GSI + 1], &[u32::MAX], &[30, 30], &[24, 25, 24]] {
        let routes: Vec<MsiRoute> = gsis.iter().copied().map(route).collect();
        refused(&format!("routes of {gsis:?}"), vm.vm().set_msi_routes(&routes), Errno::INVAL)?;
    }
    Ok(())
}

fn i3_addresses(backend: &Backend) -> anyhow::Result<()> {
    let vm = vm(backend)?;
    let make = || eventfd(0, EventfdFlags::CLOEXEC);
    let (first, second) = (make()?, make()?);
    vm.vm().register_ioeventfd(first.as_fd(), 0xd000_0000)?;
    vm.vm().register_ioeventfd(first.as_fd(), 0xd000_0004)?;
    refused("a second event", vm.vm().register_ioeventfd(second.as_fd(), 0xd000_0000), Errno::EXIST)?;
    refused("another's", vm.vm().unregister_ioeventfd(second.as_fd(), 0xd000_0000), Errno::NOENT)?;
    vm.vm().unregister_ioeventfd(first.try_clone()?.as_fd(), 0xd000_0000)?;
    refused("what is gone", vm.vm().unregister_ioeventfd(first.as_fd(), 0xd000_0000), Errno::NOENT)?;
    vm.vm().register_ioeventfd(second.as_fd(), 0xd000_0000)?;
    let file = File::open("/dev/null")?;
    refused("no event", vm.vm().register_ioeventfd(file.as_fd(), 0xd000_1000), Errno::INVAL)
}

/// A run that could do nothing would come back at once, again and again, and keep a processor of the host busy.
fn i4_waiting(backend: &Backend) -> anyhow::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let vm = vm(backend)?;
    let _first = vm.vm().create_vcpu(0)?;
    let mut waiting = vm.vm().create_vcpu(1)?;
    let interrupter = waiting.interrupter()?;
    waiting.inject_nmi()?;
    register_signal_handler(SIGRTMIN(), nothing)?;
    let run = std::thread::spawn(move || waiting.run().map(|exit| format!("{exit:?}")));
    std::thread::sleep(Duration::from_millis(200));
    let came_back = run.is_finished();
    interrupter.set(true);
    while !run.is_finished() {
        run.kill(SIGRTMIN())?;
        std::thread::sleep(Duration::from_millis(10));
    }
    let exit = run.join().map_err(|_| anyhow::anyhow!("the run panicked"))??;
    expect::equal("whether it came back by itself, and how", (came_back, exit.as_str()), (false, "Interrupted"))
}
