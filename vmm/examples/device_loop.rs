//! A device that works on guest memory while pages of it become private and shared again.
//!
//! The memory core alone, on the model of KVM: no machine, no kernel. `cargo run -p vmm --example device_loop`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::x86_64::MemoryLayout;
use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
use hypervisor::model::ModelHypervisor;
use hypervisor::{GpaRange, PAGE_SIZE, PageState, VmType};
use vm_memory::{GuestAddress, VolatileMemory};
use vmm::memory::guarded::{DeviceView, Obstacle, RefusedAccess};
use vmm::memory::{GuestRam, RamOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SIZE: u64 = 4 << 20;
const BUFFER: u64 = 2 << 20;
const CONVERSIONS: u64 = 1000;

/// Runs the example, and says what the device saw.
pub fn main() -> Result<()> {
    let vm = ModelHypervisor::new().create(VmType::SwProtected)?;
    let ram = GuestRam::new(vm, MemoryLayout::one_alias(SIZE, 40)?, RamOptions::default())?;

    let end = Arc::new(AtomicBool::new(false));
    // A view for each thread of a device. Its name is what reports of refusals and waits say.
    let (view, told) = (ram.devices().view("counter"), end.clone());
    let device = std::thread::spawn(move || device(&view, &told));

    let buffer = GpaRange::new(BUFFER, PAGE_SIZE)?;
    for number in 0..CONVERSIONS {
        let to = if number % 2 == 0 { PageState::Private } else { PageState::Shared };
        // Waits until the device has let go of the page; then it is refused until the page is shared again.
        ram.convert(ConversionRequest { range: buffer, to, kind: ConversionKind::Host, origin: Origin::Host })?;
    }
    end.store(true, Ordering::Relaxed);
    let (counted, refused) = device.join().map_err(|_| "the device panicked")??;
    let statistics = ram.statistics();
    println!("{CONVERSIONS} conversions; the device counted {counted} times and was refused {refused} times");
    assert_eq!(statistics.conversions_host, CONVERSIONS);
    assert_eq!(statistics.accesses_refused, refused);
    Ok(())
}

/// Counts in the buffer for as long as it may. The buffer reads zero whenever it becomes shared, never what it held before.
fn device(view: &DeviceView, end: &AtomicBool) -> Result<(u64, u64)> {
    let (mut counted, mut refused) = (0, 0);
    while !end.load(Ordering::Relaxed) {
        // Checked once, then plain access: the page stays shared for as long as the window is held.
        match view.window(GuestAddress(BUFFER), 8) {
            Ok(window) => {
                let slice = window.slice();
                let cell = slice.get_ref::<u64>(0)?;
                for _ in 0..16 {
                    cell.store(cell.load() + 1);
                    counted += 1;
                }
            }
            Err(error) => {
                let access = RefusedAccess::in_error(&error).ok_or("an error that is no refusal")?;
                assert!(matches!(access.obstacle, Obstacle::Private | Obstacle::Converting), "{access}");
                refused += 1;
            }
        }
    }
    Ok((counted, refused))
}
