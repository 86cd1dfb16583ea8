//! The event registers: how the guest learns that a slot has got a device, that one is to go, or that the power button was
//! pushed, and how it says that it has let go (arch's `acpi::dsdt` is the other side).
//!
//! The line is an edge, and an edge is lost while the guest masks it: before its driver has started, above all. So as long as
//! there is something to read, a thread raises it again each second. It lives no longer than that.
//!
//! Registers are 32 bits wide; an access of another width or place reads zeros and does nothing. Reading a register empties
//! it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arch::x86_64::map::{
    EVENT_GSI, EVENT_PORT, EVENT_POWER_BUTTON, EVENT_SLOTS, SLOTS_EJECT_PORT, SLOTS_FILLED_PORT, SLOTS_LEAVING_PORT,
};
use hypervisor::Vm;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Error, Result};

/// How often the line is raised while nobody reads.
const REMIND: Duration = Duration::from_secs(1);

/// The registers, and the line that says that there is something to read.
pub(super) struct Events {
    shared: Arc<Shared>,
    reminder: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    line: EventFd,
    registers: Mutex<Registers>,
    /// The events were read, or the machine has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Registers {
    events: u32,
    filled: u32,
    leaving: u32,
    /// There is a thread that reminds the guest.
    reminding: bool,
    /// The machine has ended.
    ended: bool,
}

impl Shared {
    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self) {
        // It fails only if the counter is at its end, and then there is an interrupt on its way.
        let _ = self.line.write(1);
    }

    /// Raises the line each second until all events were read.
    fn remind(&self) {
        let mut registers = self.registers();
        while registers.events != 0 && !registers.ended {
            let (after, wait) = self.changed.wait_timeout(registers, REMIND).unwrap_or_else(PoisonError::into_inner);
            registers = after;
            if wait.timed_out() && registers.events != 0 {
                self.raise();
            }
        }
        registers.reminding = false;
    }
}

impl Events {
    pub(super) fn new(vm: &dyn Vm) -> Result<Self> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::system("create an interrupt line"))?;
        vm.register_irqfd(&line, EVENT_GSI)?;
        let shared = Shared { line, registers: Mutex::default(), changed: Condvar::new() };
        Ok(Self { shared: Arc::new(shared), reminder: Mutex::default() })
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.shared.registers()
    }

    fn raise(&self, change: impl FnOnce(&mut Registers)) {
        let mut reminder = self.reminder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut registers = self.registers();
        change(&mut registers);
        let start = !registers.ended && !registers.reminding;
        registers.reminding |= start;
        drop(registers);
        self.shared.raise();
        if start {
            let shared = self.shared.clone();
            match std::thread::Builder::new().name("events".into()).spawn(move || shared.remind()) {
                // The one before has ended, or is about to.
                Ok(thread) => *reminder = Some(thread),
                Err(error) => {
                    self.registers().reminding = false;
                    tracing::warn!("the guest is not reminded of what it does not notice: {error}");
                }
            }
        }
    }

    /// The machine has ended: nobody is reminded any more.
    pub(super) fn end(&self) {
        let mut reminder = self.reminder.lock().unwrap_or_else(PoisonError::into_inner);
        self.registers().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = reminder.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }

    /// A slot has got a device.
    pub(super) fn filled(&self, slot: u8) {
        self.raise(|registers| {
            registers.events |= EVENT_SLOTS;
            registers.filled |= bit(slot);
        });
    }

    /// The device of a slot is to go.
    pub(super) fn leaving(&self, slot: u8) {
        self.raise(|registers| {
            registers.events |= EVENT_SLOTS;
            registers.leaving |= bit(slot);
        });
    }

    /// The device of a slot is gone: nothing that the guest has not been told of it matters any more.
    pub(super) fn gone(&self, slot: u8) {
        let mut registers = self.registers();
        registers.filled &= !bit(slot);
        registers.leaving &= !bit(slot);
    }

    /// The power button is pushed.
    pub(super) fn power_button(&self) {
        self.raise(|registers| registers.events |= EVENT_POWER_BUTTON);
    }

    /// The guest reads a register.
    pub(super) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        if data.len() != 4 {
            return;
        }
        let mut registers = self.registers();
        let value = match port {
            EVENT_PORT => {
                self.shared.changed.notify_all();
                std::mem::take(&mut registers.events)
            }
            SLOTS_FILLED_PORT => std::mem::take(&mut registers.filled),
            SLOTS_LEAVING_PORT => std::mem::take(&mut registers.leaving),
            _ => 0,
        };
        data.copy_from_slice(&value.to_le_bytes());
    }

    /// The guest writes a register. Returns the slots whose devices it has let go.
    pub(super) fn write(&self, port: u16, data: &[u8]) -> impl Iterator<Item = u8> + use<> {
        let bits = match (port, data.try_into()) {
            (SLOTS_EJECT_PORT, Ok(bytes)) => u32::from_le_bytes(bytes),
            _ => 0,
        };
        (0..32).filter(move |slot| bits & bit(*slot) != 0)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.end();
    }
}

/// The bit of a slot, of which there are 32.
fn bit(slot: u8) -> u32 {
    1 << (slot % 32)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hypervisor::VmType;
    use hypervisor::model::ModelHypervisor;

    use super::*;

    #[test]
    fn the_line_is_raised_again_until_the_guest_has_read_its_events() {
        let vm = ModelHypervisor::new().create(VmType::SwProtected).unwrap();
        vm.create_irqchip().unwrap();
        let events = Events::new(&*vm).unwrap();
        for slot in [3, 4] {
            events.filled(slot);
            // The first edge, and two more.
            for _ in 0..3 {
                let start = Instant::now();
                while events.shared.line.read().is_err() {
                    assert!(start.elapsed() < Duration::from_secs(60), "the guest is not reminded");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            let mut data = [0; 4];
            events.read(EVENT_PORT, &mut data);
            assert_eq!(u32::from_le_bytes(data), EVENT_SLOTS);
            let start = Instant::now();
            while events.registers().reminding {
                assert!(start.elapsed() < Duration::from_secs(60), "the thread does not end");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // One that nobody reads does not keep the end.
        events.power_button();
        events.end();
        assert!(!events.registers().reminding);
    }
}
