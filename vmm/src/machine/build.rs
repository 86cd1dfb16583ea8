//! Building a machine: everything that can be checked is checked before anything is created.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use arch::x86_64::image::KernelImage;
use arch::x86_64::launch::{self, Launch, Window};
use arch::x86_64::map::SERIAL_GSI;
use arch::x86_64::{MemoryLayout, cpuid, msr};
use hypervisor::{Capability, Hypervisor, Vcpu};
use rustix::fs::OFlags;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Control, LaunchWindow, Machine, Population};
use crate::config::{ConsoleConfig, Resolved, SerialConfig, VmConfig};
use crate::console::Output;
use crate::devices::Devices;
use crate::devices::cmos::Cmos;
use crate::devices::custom::CustomDevices;
use crate::devices::manager::DeviceManager;
use crate::devices::serial::SerialDevice;
use crate::events::{self, EventMonitor};
use crate::memory::{GuestRam, RamOptions};
use crate::vcpu::Phase;
use crate::{Error, Result};

/// The most bytes that a kernel file may have: far more than Linux has, debugging information and all.
const MAX_KERNEL_FILE: u64 = 2 << 30;

/// Builds a machine.
pub(super) fn build(
    hypervisor: &dyn Hypervisor,
    config: &VmConfig,
    output: &Output,
    events: &Arc<EventMonitor>,
) -> Result<Machine> {
    let processors = config.cpus.boot;
    let Resolved { isolation, access_platform } = config.resolve(hypervisor.caps())?;
    let supported = hypervisor.supported_cpuid()?;
    let layout = MemoryLayout::new(isolation, config.memory.size, cpuid::address_bits(&supported))?
        .reserving(config.memory.window)?;
    let kernel = read(&config.kernel, "kernel", MAX_KERNEL_FILE)?;
    let kernel = KernelImage::parse(&kernel).map_err(|source| Error::Kernel { path: config.kernel.clone(), source })?;
    let initramfs =
        config.initramfs.as_deref().map_or(Ok(Vec::new()), |path| read(path, "initramfs", layout.size()))?;
    let launch = launch::plan(&layout, &kernel, &initramfs, &config.command_line, processors)?;

    let vm = hypervisor.create_vm(isolation.vm_type())?;
    vm.create_irqchip()?;
    if layout.converts() {
        vm.exit_on_map_gpa_range()?;
    }
    let filter = msr::filter(isolation);
    if !filter.is_empty() {
        vm.filter_msrs(filter)?;
    }
    let leaves = |id| cpuid::for_processor(&supported, &layout, id, processors);
    let leaves: Vec<_> = (0..processors).map(leaves).collect();
    let options = RamOptions {
        policy: config.conversions,
        observer: events::memory_observer(events.clone()),
        ..RamOptions::default()
    };
    let ram = Arc::new(GuestRam::new(vm.clone(), layout, options)?);
    let window = launch.window.as_ref().map(|window| LaunchWindow::open(vm.clone(), window.range)).transpose()?;
    let line = EventFd::new(EFD_NONBLOCK).map_err(Error::system("create an interrupt line"))?;
    vm.register_irqfd(&line, SERIAL_GSI)?;
    let mut vcpus = Vec::with_capacity(leaves.len());
    for (id, leaves) in (0..processors).zip(leaves) {
        let vcpu = vm.create_vcpu(id)?;
        vcpu.set_cpuid(&leaves)?;
        let phase = set_up(&*vcpu, id, &launch)?;
        vcpus.push((vcpu, phase));
    }
    let mut population = None;
    if let Some(Window { touched, .. }) = launch.window
        && hypervisor.caps().has(Capability::PreFault)
    {
        touched.iter().try_for_each(|range| ram.make_private(*range))?;
        let leaves = cpuid::for_processor(&supported, ram.layout(), processors, processors);
        // It goes on while the guest already runs.
        population = Some(Arc::new(Population::start(&*vm, processors, &leaves, &ram, touched)));
    }
    launch.blobs.iter().try_for_each(|blob| match &window {
        Some(window) => window.write(blob.gpa, &blob.data),
        None => ram.write(blob.gpa, &blob.data),
    })?;
    // All that the guest gets is in the window.
    if window.is_some() {
        ram.make_all_private()?;
    }
    let interrupters = vcpus.iter().map(|(vcpu, _)| vcpu.interrupter()).collect::<hypervisor::Result<_>>()?;
    let control = Arc::new(Control::new(interrupters, !launch.announces));
    let manager = DeviceManager::new(vm.clone(), ram.devices().clone(), access_platform, events.clone())?;
    manager.add_configured(config)?;
    if let Some(balloon) = &config.balloon {
        manager.add_balloon(balloon, ram.clone())?;
    }
    // Last, since it may create a file: whatever fails before leaves none behind.
    let serial = SerialDevice::new(line, output.writer(control.clone())?);
    let console = output.console_writer(&config.console)?;
    let console = console.map(|output| manager.add_console(output)).transpose()?;
    let console = console.filter(|_| config.console == ConsoleConfig::Tty);
    let devices = Devices { serial, console, cmos: Cmos::new(), manager, custom: CustomDevices::default() };
    let terminal = config.serial == SerialConfig::Tty || config.console == ConsoleConfig::Tty;
    Ok(Machine { isolation, vcpus, ram, devices, control, terminal, window, population, vm })
}

/// Reads a file of at most `limit` bytes. Files may be larger than memory; devices and pipes may have no end, or make whoever
/// opens or reads them wait for somebody else, so they are refused.
fn read(path: &Path, role: &'static str, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::File { operation: "read", role, path: path.to_owned(), source };
    let file = open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    if size <= limit {
        bytes.try_reserve_exact(size as usize).map_err(|error| failed(error.into()))?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if size.max(bytes.len() as u64) > limit {
        return Err(Error::FileTooLarge { role, path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// Opens a regular file, without waiting for anything.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::other("it is no regular file: copy it to one"));
    }
    Ok(file)
}

/// Puts a processor where it begins, and says what it does there.
fn set_up(vcpu: &dyn Vcpu, id: u8, launch: &Launch<'_>) -> Result<Phase> {
    /// Local APIC on, and in x2APIC mode (AMD's manual volume 2, 16.9). It must be on first.
    const APIC_ENABLE: u64 = 1 << 11;
    const APIC_X2: u64 = 1 << 10;
    let mut special = vcpu.special_registers()?;
    special.apic_base |= APIC_ENABLE;
    vcpu.set_special_registers(&special)?;
    special.apic_base |= APIC_X2;
    let phase = match &launch.parking {
        _ if id == 0 => {
            launch.set_special_registers(&mut special);
            vcpu.set_registers(&launch.registers)?;
            if launch.announces { Phase::Launching } else { Phase::Running }
        }
        Some(parking) => {
            parking.set_special_registers(&mut special);
            vcpu.set_registers(&parking.registers(id))?;
            vcpu.start_at_once()?;
            Phase::parked()
        }
        // It waits for INIT and SIPI.
        None => Phase::Running,
    };
    vcpu.set_special_registers(&special)?;
    let (index, value) = msr::MTRR_DEFAULT;
    vcpu.set_msr(index, value)?;
    Ok(phase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        for path in [&*pipe, Path::new("/dev/zero")] {
            let error = chain(&read(path, "kernel", 1 << 20).unwrap_err());
            assert!(error.contains(path.to_str().unwrap()) && error.contains("no regular file"), "{error}");
        }
        assert!(chain(&read(folder.path(), "kernel", 1).unwrap_err()).contains("directory"));
        std::fs::write(folder.path().join("file"), "x").unwrap();
        assert_eq!(read(&folder.path().join("file"), "kernel", 1).unwrap(), b"x");
    }
}
