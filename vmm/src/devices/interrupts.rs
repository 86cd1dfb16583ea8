//! Message-signalled interrupts: lines of the hypervisor's that send whatever message a guest has chosen for them.
//!
//! A device takes a line for each of its vectors and gives it a route, the message. A write to the line's event then sends
//! the message, inside the hypervisor. [`MsiLines`] keeps the table of all routes, since the hypervisor takes it only as a
//! whole.
//!
//! Guarantees: a line that is dropped is given back, its route and its event with it.
//!
//! Cost: one eventfd a line; a change of a route is one system call that passes the whole table.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::{INTERRUPT_PINS, MAX_GSI, MsiRoute, Vm};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Error, Result};

/// KVM's table holds as many entries as there are lines, and the pins of the interrupt controllers take 40 for their 24.
const LAST_LINE: u32 = MAX_GSI - 16;

/// The message of a vector: where a device would write it, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// Guest physical address.
    pub address: u64,
    /// What is written there.
    pub data: u32,
}

/// All lines of a machine.
pub struct MsiLines {
    vm: Arc<dyn Vm>,
    /// The lines in use, and the routes of those that have one.
    routes: Mutex<BTreeMap<u32, Option<Message>>>,
    /// Whether it was told that a route can't be had: the guest chooses them.
    told: AtomicBool,
}

impl MsiLines {
    /// The lines of this machine, none of them in use.
    pub fn new(vm: Arc<dyn Vm>) -> Arc<Self> {
        Arc::new(Self { vm, routes: Mutex::default(), told: AtomicBool::new(false) })
    }

    fn routes(&self) -> MutexGuard<'_, BTreeMap<u32, Option<Message>>> {
        // The table is whole between any two statements.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, which sends nothing yet.
    ///
    /// # Errors
    /// No line left, or what the system says.
    pub fn take(self: &Arc<Self>) -> Result<MsiLine> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::system("create an interrupt line"))?;
        let mut routes = self.routes();
        let gsi = (INTERRUPT_PINS..=LAST_LINE).find(|gsi| !routes.contains_key(gsi)).ok_or(Error::NoInterruptLine)?;
        self.vm.register_irqfd(&event, gsi)?;
        routes.insert(gsi, None);
        drop(routes);
        Ok(MsiLine { lines: self.clone(), gsi, event })
    }

    /// Passes the table on.
    fn apply(&self, routes: &BTreeMap<u32, Option<Message>>) -> hypervisor::Result<()> {
        let route = |(gsi, message): (&u32, &Option<Message>)| {
            message.map(|message| MsiRoute { gsi: *gsi, address: message.address, data: message.data })
        };
        self.vm.set_msi_routes(&routes.iter().filter_map(route).collect::<Vec<_>>())
    }
}

/// A line. Dropped, it is given back.
pub struct MsiLine {
    lines: Arc<MsiLines>,
    gsi: u32,
    event: EventFd,
}

impl MsiLine {
    /// Says which message it sends from now on.
    pub fn route(&self, message: Message) {
        let mut routes = self.lines.routes();
        routes.insert(self.gsi, Some(message));
        if let Err(error) = self.lines.apply(&routes)
            && !self.lines.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("interrupts of line {} go astray: {}", self.gsi, crate::error::chain(&error));
        }
    }

    /// Sends its message.
    pub fn trigger(&self) {
        // It fails only if the counter is at its end, and then there is an interrupt on its way.
        let _ = self.event.write(1);
    }
}

#[cfg(test)]
impl MsiLine {
    /// Whether it was triggered since it was last asked.
    pub(super) fn sent(&self) -> bool {
        self.event.read().is_ok()
    }
}

impl Drop for MsiLine {
    fn drop(&mut self) {
        let mut routes = self.lines.routes();
        if let Err(error) = self.lines.vm.unregister_irqfd(&self.event, self.gsi) {
            tracing::warn!("{}", crate::error::chain(&error));
        }
        if let Some(Some(_)) = routes.remove(&self.gsi)
            && let Err(error) = self.lines.apply(&routes)
        {
            tracing::warn!("{}", crate::error::chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::VmType;
    use hypervisor::model::ModelHypervisor;

    #[test]
    fn lines_are_above_the_pins_and_given_back_whole() {
        let vm = ModelHypervisor::new().create(VmType::Default).unwrap();
        vm.create_irqchip().unwrap();
        let lines = MsiLines::new(vm.clone());
        let first = lines.take().unwrap();
        let second = lines.take().unwrap();
        assert_eq!(vm.interrupt_lines(), [24, 25]);
        assert!(vm.msi_routes().is_empty());
        second.route(Message { address: 0xfee0_0000, data: 7 });
        first.route(Message { address: 0xfee0_1000, data: 8 });
        let route = |gsi, address, data| MsiRoute { gsi, address, data };
        assert_eq!(vm.msi_routes(), [route(24, 0xfee0_1000, 8), route(25, 0xfee0_0000, 7)]);
        drop(first);
        assert_eq!((vm.interrupt_lines(), vm.msi_routes()), (vec![25], vec![route(25, 0xfee0_0000, 7)]));
        let again = lines.take().unwrap();
        assert_eq!(vm.interrupt_lines(), [24, 25]);
        drop((second, again));
        assert!(vm.interrupt_lines().is_empty() && vm.msi_routes().is_empty());
    }

    #[test]
    fn when_there_is_no_line_left_the_error_says_so() {
        let vm = ModelHypervisor::new().create(VmType::Default).unwrap();
        vm.create_irqchip().unwrap();
        let lines = MsiLines::new(vm);
        lines.routes().extend((INTERRUPT_PINS..=LAST_LINE).map(|gsi| (gsi, None)));
        assert!(matches!(lines.take(), Err(Error::NoInterruptLine)));
    }
}
