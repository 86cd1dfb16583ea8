//! What the guest can't find out by asking: the serial port, the clock, the PCI host bridge and its slots, and the events of the
//! platform.
//!
//! Events (a device comes or is to go, the power button) come as edges on one interrupt line, which belongs to a generic
//! event device (ACPI 6.5, 5.6.9). Its method reads the event registers ([`EVENT_PORT`] and those behind it), which say what
//! has happened, and notifies the devices that it has happened to. Registers forget what they have told, so an edge that
//! tells of two events, or of none, does no harm.

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::x86_64::map::{
    CMOS_PORT, CMOS_PORTS, EVENT_GSI, EVENT_PORT, EVENT_PORTS_END, EVENT_POWER_BUTTON, EVENT_SLOTS, PCI_ADDRESS_PORT,
    PCI_MEMORY_END, PCI_MEMORY_START, PCI_PORTS, PCI_SLOTS, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS, SLEEP_TYPE_OFF,
};

/// Notifications (ACPI 6.5, table 5.160 and 5.166).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
const BUTTON_PUSHED: u8 = 0x80;

/// The event registers, in their order.
const EVENTS: &str = "EVNT";
const SLOTS_FILLED: &str = "FILL";
const SLOTS_LEAVING: &str = "LEAV";
const SLOTS_EJECT: &str = "EJCT";

pub(super) fn dsdt() -> Sdt {
    let mut code = Vec::new();
    serial_port(&mut code);
    clock(&mut code);
    event_registers(&mut code);
    power_button(&mut code);
    host_bridge(&mut code);
    event_device(&mut code);
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&SLEEP_TYPE_OFF])).to_aml_bytes(&mut code);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// COM1, as firmware describes it: Linux finds its interrupt line here.
fn serial_port(code: &mut Vec<u8>) {
    let ports = aml::IO::new(SERIAL_PORT, SERIAL_PORT, 1, SERIAL_PORTS as u8);
    let line = aml::Interrupt::new(true, true, false, false, SERIAL_GSI);
    let resources = aml::ResourceTemplate::new(vec![&ports, &line]);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(code);
}

/// The clock. It has no interrupt line: Linux would take line 8 for granted if it found the clock by itself, and there is none
/// without legacy interrupt controllers.
fn clock(code: &mut Vec<u8>) {
    let ports = aml::IO::new(CMOS_PORT, CMOS_PORT, 1, CMOS_PORTS as u8);
    aml::Device::new(
        "_SB_.RTC0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0B00")),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(code);
}

fn event_registers(code: &mut Vec<u8>) {
    let register = |name: &str| {
        let mut bytes = [b'_'; 4];
        bytes.copy_from_slice(name.as_bytes());
        aml::FieldEntry::Named(bytes, 32)
    };
    aml::OpRegion::new(
        "\\EVRG".into(),
        aml::OpRegionSpace::SystemIO,
        &EVENT_PORT,
        &u8::try_from(EVENT_PORTS_END - EVENT_PORT).unwrap_or(u8::MAX),
    )
    .to_aml_bytes(code);
    aml::Field::new(
        "\\EVRG".into(),
        aml::FieldAccessType::DWord,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        [EVENTS, SLOTS_FILLED, SLOTS_LEAVING, SLOTS_EJECT].map(register).to_vec(),
    )
    .to_aml_bytes(code);
}

fn power_button(code: &mut Vec<u8>) {
    let id = aml::EISAName::new("PNP0C0C");
    aml::Device::new("_SB_.PWRB".into(), vec![&aml::Name::new("_HID".into(), &id)]).to_aml_bytes(code);
}

/// The bus, with a device for each slot that can be filled and emptied.
fn host_bridge(code: &mut Vec<u8>) {
    let buses = aml::AddressSpace::<u16>::new_bus_number(0, 0);
    let ports = aml::IO::new(PCI_ADDRESS_PORT, PCI_ADDRESS_PORT, 1, PCI_PORTS as u8);
    let uncached = aml::AddressSpaceCacheable::NotCacheable;
    let memory = aml::AddressSpace::<u32>::new_memory(uncached, true, PCI_MEMORY_START, PCI_MEMORY_END - 1, None);
    let resources = aml::ResourceTemplate::new(vec![&buses, &ports, &memory]);
    let (id, root, check) = (
        aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A03")),
        aml::Name::new("_UID".into(), &aml::ZERO),
        Raw(slot_check()),
    );
    let resources = aml::Name::new("_CRS".into(), &resources);
    let slots: Vec<Raw> = (1..PCI_SLOTS).map(|slot| Raw(slot_device(slot))).collect();
    let mut children: Vec<&dyn Aml> = vec![&id, &root, &resources];
    children.extend(slots.iter().map(|slot| slot as &dyn Aml));
    children.push(&check);
    aml::Device::new("_SB_.PCI0".into(), children).to_aml_bytes(code);
}

/// Code that was made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn slot_name(slot: u8) -> String {
    format!("S{slot:03}")
}

fn slot_device(slot: u8) -> Vec<u8> {
    let mut code = Vec::new();
    // Device and function in the high and the low word (ACPI 6.5, 6.1.1).
    let address = u32::from(slot) << 16;
    let (register, bit) = (aml::Path::new(SLOTS_EJECT), 1u32 << slot);
    aml::Device::new(
        slot_name(slot).as_str().into(),
        vec![
            &aml::Name::new("_ADR".into(), &address),
            &aml::Name::new("_SUN".into(), &slot),
            &aml::Method::new("_EJ0".into(), 1, true, vec![&aml::Store::new(&register, &bit)]),
        ],
    )
    .to_aml_bytes(&mut code);
    code
}

/// The method that tells slots what has happened to them.
fn slot_check() -> Vec<u8> {
    let mut code = Vec::new();
    let (filled, leaving) = (aml::Path::new(SLOTS_FILLED), aml::Path::new(SLOTS_LEAVING));
    let mut body = Vec::new();
    aml::Store::new(&aml::Local(0), &filled).to_aml_bytes(&mut body);
    aml::Store::new(&aml::Local(1), &leaving).to_aml_bytes(&mut body);
    for slot in 1..PCI_SLOTS {
        let (name, bit) = (aml::Path::new(&slot_name(slot)), 1u32 << slot);
        for (local, what) in [(0, DEVICE_CHECK), (1, EJECT_REQUEST)] {
            aml::If::new(&aml::And::new(&aml::ZERO, &aml::Local(local), &bit), vec![&aml::Notify::new(&name, &what)])
                .to_aml_bytes(&mut body);
        }
    }
    aml::Method::new("SLTS".into(), 0, true, vec![&Raw(body)]).to_aml_bytes(&mut code);
    code
}

fn event_device(code: &mut Vec<u8>) {
    let line = aml::Interrupt::new(true, true, false, false, EVENT_GSI);
    let resources = aml::ResourceTemplate::new(vec![&line]);
    let (events, button) = (aml::Path::new(EVENTS), aml::Path::new("\\_SB_.PWRB"));
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &resources),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &aml::Store::new(&aml::Local(0), &events),
                    &aml::If::new(
                        &aml::And::new(&aml::ZERO, &aml::Local(0), &EVENT_SLOTS),
                        vec![&aml::MethodCall::new("\\_SB_.PCI0.SLTS".into(), vec![])],
                    ),
                    &aml::If::new(
                        &aml::And::new(&aml::ZERO, &aml::Local(0), &EVENT_POWER_BUTTON),
                        vec![&aml::Notify::new(&button, &BUTTON_PUSHED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of an object, which the table has once.
    #[track_caller]
    fn has_once(table: &[u8], object: &[u8]) {
        let found = table.windows(object.len()).filter(|bytes| *bytes == object).count();
        assert_eq!(found, 1, "{object:x?}");
    }

    #[test]
    fn every_slot_but_the_bridges_has_its_device_and_its_eject_bit() {
        let mut table = Vec::new();
        dsdt().to_aml_bytes(&mut table);
        for slot in 1..PCI_SLOTS {
            has_once(&table, &slot_device(slot));
        }
        // Last slot: Name (_ADR, 0x1F0000), Name (_SUN, 0x1F), Store (0x80000000, EJCT)
        has_once(&table, b"\x08_ADR\x0c\x00\x00\x1f\x00");
        has_once(&table, b"\x08_SUN\x0a\x1f");
        has_once(&table, b"\x70\x0c\x00\x00\x00\x80EJCT");
        assert!(!table.windows(4).any(|name| name == b"S000"));
    }

    #[test]
    fn the_clock_has_its_ports_and_no_interrupt_line() {
        let mut table = Vec::new();
        dsdt().to_aml_bytes(&mut table);
        // Name (_HID, EisaId ("PNP0B00")), and a buffer of ten bytes: IO (Decode16, 0x70, 0x70, 1, 2), end.
        has_once(&table, b"\x08_HID\x0c\x41\xd0\x0b\x00");
        has_once(&table, b"\x08_CRS\x11\x0d\x0a\x0a\x47\x01\x70\x00\x70\x00\x01\x02\x79\x00");
    }

    #[test]
    fn the_memory_of_pci_devices_ends_where_the_interrupt_controllers_begin() {
        let mut table = Vec::new();
        dsdt().to_aml_bytes(&mut table);
        // Least and greatest address, translation and length of a DWord memory descriptor.
        let window: Vec<u8> =
            [0xc000_0000u32, 0xfebf_ffff, 0, 0x3ec0_0000].iter().flat_map(|word| word.to_le_bytes()).collect();
        has_once(&table, &window);
    }
}
