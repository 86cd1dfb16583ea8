//! Devices of whoever embeds the machine, on ports and at addresses without RAM.
//!
//! They are added before the machine runs ([`Machine::add_port_device`], [`Machine::add_memory_device`]), at places that
//! nothing else of the machine has. A device gets no guest memory from here: one that needs some keeps a view that it is given
//! when it is made ([`Machine::memory`]), and so finds private pages closed, as the machine's own devices do.
//!
//! Guarantees: a device is called with all accesses that begin in its place, and with no others; those to addresses end there,
//! too. It is gone when the machine has ended, though handles of that may be left. Cost: a look through the list of these
//! devices for each access to addresses without RAM, and for each to a port that no device of the machine's own takes.

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::sync::{Mutex, PoisonError};

use arch::x86_64::MemoryLayout;
use arch::x86_64::map::{
    EVENT_PORT, EVENT_PORTS_END, IOAPIC, KEYBOARD_PORT, LAUNCH_PORT, LEAVING_PORT, LOCAL_APIC, PCI_ADDRESS_PORT,
    PCI_MEMORY_END, PCI_MEMORY_START, PCI_PORTS, RESET_PORT, SERIAL_PORT, SERIAL_PORTS, SLEEP_CONTROL_PORT,
};
use hypervisor::{GpaRange, PAGE_SIZE};

use super::cmos::{CMOS_PORT, CMOS_PORTS};
use crate::{Error, Result};

#[cfg(doc)]
use crate::Machine;

/// A device of the embedder's. Its methods run on the threads of vCPUs, of one at a time, and hold these up for as long as they
/// take: a pause and the end of the machine wait for them. Threads of its own are its own to stop.
pub trait CustomDevice: Send {
    /// The guest reads at this offset in the device's place. `data` holds all ones.
    ///
    /// The guest chooses how wide an access is. On ports it may begin at the last one and be four bytes wide, and a string
    /// instruction's accesses come at once, one after the other in `data`: don't take `offset + data.len()` for a place that
    /// there is.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes at this offset in the device's place.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// All of these devices of a machine.
#[derive(Default)]
pub struct CustomDevices {
    ports: Places,
    memory: Places,
}

/// Devices by the places that they have, which don't overlap.
#[derive(Default)]
struct Places(Vec<Placed>);

struct Placed {
    place: Range<u64>,
    /// None once the machine has ended.
    device: Mutex<Option<Box<dyn CustomDevice>>>,
}

/// Places that are taken, and by what.
type Taken<'a> = &'a [(Range<u64>, &'a str)];

const fn ports(first: u16, end: u16) -> Range<u64> {
    first as u64..end as u64
}

/// Ports of the machine's own, and those that KVM has itself.
const MACHINE_PORTS: &[(Range<u64>, &str)] = &[
    (ports(0x20, 0x22), "the interrupt controllers"),
    (ports(0x40, 0x44), "the timer"),
    (ports(0x61, 0x62), "the timer"),
    (ports(KEYBOARD_PORT, KEYBOARD_PORT + 1), "the keyboard controller"),
    (ports(CMOS_PORT, CMOS_PORT + CMOS_PORTS), "the clock"),
    (ports(0xa0, 0xa2), "the interrupt controllers"),
    (ports(SERIAL_PORT, SERIAL_PORT + SERIAL_PORTS), "the serial port"),
    (ports(0x4d0, 0x4d2), "the interrupt controllers"),
    (ports(SLEEP_CONTROL_PORT, RESET_PORT + 1), "power-off and reset"),
    (ports(LAUNCH_PORT, LEAVING_PORT + 1), "the launch"),
    (ports(EVENT_PORT, EVENT_PORTS_END), "the platform's events"),
    (ports(PCI_ADDRESS_PORT, PCI_ADDRESS_PORT + PCI_PORTS), "the PCI bus"),
];

/// Addresses of the machine's own, and those that KVM has itself.
const MACHINE_ADDRESSES: &[(Range<u64>, &str)] = &[
    (PCI_MEMORY_START as u64..PCI_MEMORY_END as u64, "the PCI bus"),
    (IOAPIC as u64..IOAPIC as u64 + PAGE_SIZE, "the interrupt controllers"),
    (LOCAL_APIC as u64..LOCAL_APIC as u64 + PAGE_SIZE, "the interrupt controllers"),
    // Intel's KVM has four pages there.
    (0xfffb_c000..0xfffc_0000, "KVM"),
];

impl CustomDevices {
    /// Puts a device on ports.
    ///
    /// # Errors
    /// No ports, or ports that something has.
    pub(crate) fn add_ports(&mut self, ports: RangeInclusive<u16>, device: Box<dyn CustomDevice>) -> Result<()> {
        let place = u64::from(*ports.start())..u64::from(*ports.end()) + 1;
        let name = format!("{:#x} to {:#x}", ports.start(), ports.end());
        self.ports.add(place, format_args!("ports {name}"), MACHINE_PORTS, device)
    }

    /// Puts a device at addresses of a guest whose RAM is laid out like this.
    ///
    /// # Errors
    /// Addresses that something has.
    pub(crate) fn add_memory(
        &mut self,
        range: GpaRange,
        layout: &MemoryLayout,
        device: Box<dyn CustomDevice>,
    ) -> Result<()> {
        let aliases = layout.ranges().iter().flat_map(|ram| ram.aliases.iter().map(move |alias| (ram, alias)));
        let mut taken = MACHINE_ADDRESSES.to_vec();
        for (ram, alias) in aliases {
            let place = ram.gpa.offset_by(alias.offset).map_err(hypervisor::Error::from)?;
            taken.push((place.start()..place.end(), "RAM"));
        }
        taken.extend(layout.launch_window().map(|window| (window.start()..window.end(), "the launch")));
        self.memory.add(range.start()..range.end(), format_args!("addresses {range}"), &taken, device)
    }

    /// Drops all of them: the machine has ended.
    pub(crate) fn end(&self) {
        self.ports.end();
        self.memory.end();
    }

    /// The guest reads ports that nothing of the machine's own has.
    pub(super) fn read_port(&self, port: u16, data: &mut [u8]) {
        self.ports.with(port.into(), 1, |device, offset| device.read(offset, data));
    }

    /// The guest writes ports that nothing of the machine's own has.
    pub(super) fn write_port(&self, port: u16, data: &[u8]) {
        self.ports.with(port.into(), 1, |device, offset| device.write(offset, data));
    }

    /// The guest reads addresses without RAM. Whether a device has them.
    pub(super) fn read_memory(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.memory.with(gpa, data.len() as u64, |device, offset| device.read(offset, data))
    }

    /// The guest writes addresses without RAM. Whether a device has them.
    pub(super) fn write_memory(&self, gpa: u64, data: &[u8]) -> bool {
        self.memory.with(gpa, data.len() as u64, |device, offset| device.write(offset, data))
    }
}

impl Places {
    fn add(
        &mut self,
        place: Range<u64>,
        name: fmt::Arguments<'_>,
        taken: Taken<'_>,
        device: Box<dyn CustomDevice>,
    ) -> Result<()> {
        let refused = |reason| Err(Error::DevicePlace { place: name.to_string(), reason });
        if place.is_empty() {
            return refused("they are none: begin with the lower one".into());
        }
        let meets = |other: &Range<u64>| other.start < place.end && place.start < other.end;
        if let Some((_, owner)) = taken.iter().find(|(other, _)| meets(other)) {
            return refused(format!("{owner} has some of them: choose others"));
        }
        if self.0.iter().any(|other| meets(&other.place)) {
            return refused("a device that was added before has some of them: choose others".into());
        }
        self.0.push(Placed { place, device: Mutex::new(Some(device)) });
        Ok(())
    }

    /// Does this with the device that has all of these, and where in its place they are. Whether there is one.
    fn with(&self, start: u64, size: u64, access: impl FnOnce(&mut dyn CustomDevice, u64)) -> bool {
        let Some(end) = start.checked_add(size) else { return false };
        let found = self.0.iter().find(|found| found.place.start <= start && end <= found.place.end);
        let Some(Placed { place, device }) = found else { return false };
        // One that panicked is as it was left; nothing here depends on it.
        match &mut *device.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(device) => access(&mut **device, start - place.start),
            None => return false,
        }
        true
    }

    fn end(&self) {
        for Placed { device, .. } in &self.0 {
            // Dropped without the lock: it may take its time.
            let gone = device.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arch::x86_64::Isolation;

    use super::*;

    /// An offset, and what was written there.
    type Note = (u64, Vec<u8>);

    /// Remembers what is written, and reads as its offset.
    #[derive(Default, Clone)]
    struct Notes(Arc<Mutex<Vec<Note>>>);

    impl CustomDevice for Notes {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn software() -> MemoryLayout {
        MemoryLayout::new(Isolation::Software, 64 << 20, 40).unwrap()
    }

    #[test]
    fn devices_get_what_lies_in_their_places_and_nothing_else() {
        let (port, memory, mut devices) = (Notes::default(), Notes::default(), CustomDevices::default());
        devices.add_ports(0x510..=0x513, Box::new(port.clone())).unwrap();
        devices.add_ports(u16::MAX..=u16::MAX, Box::new(port.clone())).unwrap();
        devices.add_memory(GpaRange::new(0xfed4_0000, 4096).unwrap(), &software(), Box::new(memory.clone())).unwrap();
        for (at, expected) in [(0x50f, 0xff), (0x510, 0), (0x513, 3), (0x514, 0xff), (u16::MAX, 0)] {
            let mut data = [0xff];
            devices.read_port(at, &mut data);
            assert_eq!(data, [expected], "{at:#x}");
            devices.write_port(at, &[at as u8]);
        }
        for (at, expected) in [(0xfed3_fffc, 0xff), (0xfed4_0000, 0), (0xfed4_0007, 7), (0xfed4_0ffc, 0xfc)]
            .into_iter()
            // Across the end, and beyond.
            .chain([(0xfed4_0ffd, 0xff), (0xfed4_1000, 0xff), (u64::MAX, 0xff)])
        {
            let mut data = [0xff; 4];
            assert_eq!(devices.read_memory(at, &mut data), expected != 0xff, "{at:#x}");
            assert_eq!(data, [expected; 4], "{at:#x}");
            assert_eq!(devices.write_memory(at, &[1, 2, 3, 4]), expected != 0xff, "{at:#x}");
        }
        assert_eq!(*port.0.lock().unwrap(), [(0, vec![0x10]), (3, vec![0x13]), (0, vec![0xff])]);
        assert_eq!(memory.0.lock().unwrap().iter().map(|note| note.0).collect::<Vec<_>>(), [0, 7, 0xffc]);
    }

    #[test]
    fn an_access_to_ports_may_be_wider_than_what_is_left_of_them() {
        let (notes, mut devices) = (Notes::default(), CustomDevices::default());
        devices.add_ports(0x510..=0x513, Box::new(notes.clone())).unwrap();
        devices.write_port(0x513, &[1, 2, 3, 4]);
        assert_eq!(*notes.0.lock().unwrap(), [(3, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn devices_are_gone_when_the_machine_has_ended() {
        let (notes, mut devices) = (Notes::default(), CustomDevices::default());
        devices.add_ports(0x510..=0x510, Box::new(notes.clone())).unwrap();
        devices.add_memory(GpaRange::new(0xfed4_0000, 4096).unwrap(), &software(), Box::new(notes.clone())).unwrap();
        assert_eq!(Arc::strong_count(&notes.0), 3);
        devices.end();
        assert_eq!(Arc::strong_count(&notes.0), 1);
        devices.write_port(0x510, &[1]);
        assert!(!devices.write_memory(0xfed4_0000, &[1]));
    }

    #[test]
    fn places_that_something_has_are_refused_by_name() {
        let (notes, mut devices) = (Notes::default(), CustomDevices::default());
        devices.add_ports(0x510..=0x513, Box::new(notes.clone())).unwrap();
        #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
        let empty = 2..=1;
        for (ports, owner) in [
            (0x3f0..=0x3f8, "the serial port"),
            (0..=0xffff, "the interrupt controllers"),
            (0xcfc..=0xcfc, "the PCI bus"),
            (0x602..=0x602, "power-off"),
            (0x609..=0x609, "the launch"),
            (0x513..=0x520, "added before"),
            (empty, "they are none"),
        ] {
            let error = devices.add_ports(ports.clone(), Box::new(notes.clone())).unwrap_err().to_string();
            assert!(error.contains(owner) && error.contains(&format!("{:#x} to", ports.start())), "{error}");
        }
        let private = 1 << software().c_bit().unwrap();
        for (start, size, owner) in [
            (0, 4096, "RAM"),
            (0x3ff_f000, 0x2000, "RAM"),
            (private, 4096, "RAM"),
            (0xc000_0000, 4096, "the PCI bus"),
            (0xfebf_f000, 0x2000, "the PCI bus"),
            (0xfee0_0000, 4096, "the interrupt controllers"),
            (0xfffb_f000, 4096, "KVM"),
            (software().launch_window().unwrap().start(), 4096, "the launch"),
        ] {
            let range = GpaRange::new(start, size).unwrap();
            let error = devices.add_memory(range, &software(), Box::new(notes.clone())).unwrap_err().to_string();
            assert!(error.contains(owner), "{error}");
        }
    }
}
