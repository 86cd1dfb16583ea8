//! The event registers: how the guest learns that a slot has got a device, that one is to go, or that the power button was
//! pushed, and how it says that it has let go (arch's `acpi::dsdt` is the other side).
//!
//! Registers are 32 bits wide; an access of another width or place reads zeros and does nothing. Reading a register empties
//! it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use arch::x86_64::map::{
    EVENT_GSI, EVENT_PORT, EVENT_POWER_BUTTON, EVENT_SLOTS, SLOTS_EJECT_PORT, SLOTS_FILLED_PORT, SLOTS_LEAVING_PORT,
};
use hypervisor::Vm;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Error, Result};

/// The registers, and the line that says that there is something to read.
pub(super) struct Events {
    line: EventFd,
    registers: Mutex<Registers>,
}

#[derive(Debug, Default)]
struct Registers {
    events: u32,
    filled: u32,
    leaving: u32,
}

impl Events {
    pub(super) fn new(vm: &dyn Vm) -> Result<Self> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::system("create an interrupt line"))?;
        vm.register_irqfd(&line, EVENT_GSI)?;
        Ok(Self { line, registers: Mutex::default() })
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, change: impl FnOnce(&mut Registers)) {
        change(&mut self.registers());
        // It fails only if the counter is at its end, and then there is an interrupt on its way.
        let _ = self.line.write(1);
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
            EVENT_PORT => std::mem::take(&mut registers.events),
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

/// The bit of a slot, of which there are 32.
fn bit(slot: u8) -> u32 {
    1 << (slot % 32)
}
