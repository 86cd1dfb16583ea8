//! Interrupt routes and events of KVM's.
#![expect(unsafe_code, reason = "kvm-ioctls takes an event by a type that is only made of a raw descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry as Entry, kvm_irq_routing_entry__bindgen_ty_1 as Target,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::traits::check_routes;
use crate::{Error, INTERRUPT_PINS, MsiRoute, Result};

/// Pins of one of the two 8259.
const PIC_PINS: u32 = 8;

/// Replaces the routing table: the pins as `KVM_CREATE_IRQCHIP` routes them (Linux `arch/x86/kvm/irq_comm.c`,
/// `default_routing`), and these messages.
pub(super) fn set_routes(vm: &VmFd, routes: &[MsiRoute]) -> Result<()> {
    let subject = || format!("{} message-signalled interrupts", routes.len());
    let refused = |source| Error::Failed { operation: "route", subject: subject(), source };
    check_routes(routes).map_err(|errno| refused(io::Error::from_raw_os_error(errno)))?;
    let entries: Vec<Entry> = (0..INTERRUPT_PINS).flat_map(pins).chain(routes.iter().map(message)).collect();
    let table = KvmIrqRouting::from_entries(&entries)
        .map_err(|error| refused(io::Error::other(format!("{} entries: {error:?}", entries.len()))))?;
    vm.set_gsi_routing(&table).map_err(Error::failed("route", subject()))
}

/// What a line is wired to: a pin of an 8259 for the first ones, and the IOAPIC's.
fn pins(gsi: u32) -> impl Iterator<Item = Entry> {
    let pic = if gsi < PIC_PINS { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
    let pic = (gsi < 2 * PIC_PINS).then_some((pic, gsi % PIC_PINS));
    pic.into_iter().chain([(KVM_IRQCHIP_IOAPIC, gsi)]).map(move |(irqchip, pin)| Entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: Target { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Entry::default()
    })
}

fn message(route: &MsiRoute) -> Entry {
    let msi = kvm_irq_routing_msi {
        address_lo: route.address as u32,
        address_hi: (route.address >> 32) as u32,
        data: route.data,
        ..Default::default()
    };
    Entry { gsi: route.gsi, type_: KVM_IRQ_ROUTING_MSI, u: Target { msi }, ..Entry::default() }
}

/// Another descriptor of the same event, which the kernel knows by what is behind it.
pub(super) fn event(event: BorrowedFd<'_>) -> Result<EventFd> {
    let own = event.try_clone_to_owned().map_err(|source| Error::Failed {
        operation: "copy",
        subject: "the descriptor of an event".into(),
        source,
    })?;
    // SAFETY: the descriptor was just made, and nobody else has it. One that is no eventfd's, KVM refuses.
    Ok(unsafe { EventFd::from_raw_fd(own.into_raw_fd()) })
}
