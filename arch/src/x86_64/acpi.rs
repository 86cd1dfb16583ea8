//! ACPI tables of the machine: processors, interrupt controllers, power-off and reset, and what [`dsdt`] describes.
//!
//! The machine is "hardware-reduced" (ACPI 6.5, 4.1): no legacy timer block, no SCI; sleep and reset are byte-wide
//! ports. Tables lie in the area from [`ACPI_START`], RSDP first, each at the next 16-byte border.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::map::{
    ACPI_START, ACPI_TABLES_END, IOAPIC, LOCAL_APIC, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
    WAKEUP_MAILBOX,
};

const OEM: [u8; 6] = *b"UMBRA ";
const OEM_TABLE: [u8; 8] = *b"UMBRAVM ";
const OEM_REVISION: u32 = 1;

/// IA-PC boot flags (ACPI 6.5, table 5.10): no VGA to probe, no CMOS clock.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// How the guest starts its other processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessorStart {
    /// By INIT and SIPI, in real mode.
    StartupInterrupt,
    /// Through the mailbox at [`WAKEUP_MAILBOX`], in 64-bit mode.
    Mailbox,
}

/// All tables, as bytes for the area that starts at [`ACPI_START`].
///
/// # Errors
/// More processors than the area has room for.
pub fn build(processors: u8, start: ProcessorStart) -> Result<Vec<u8>, AcpiError> {
    let mut area = Area { bytes: vec![0; RSDP_ROOM] };
    let dsdt = area.add(&dsdt::dsdt());
    let fadt = area.add(&fadt(dsdt));
    let madt = area.add(&madt(processors, start));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    match area.bytes.len() as u64 {
        size if size > ACPI_TABLES_END - ACPI_START => Err(AcpiError::TooLarge { size, processors }),
        _ => Ok(area.bytes),
    }
}

/// Where the guest finds the root pointer.
pub const RSDP: u64 = ACPI_START;

/// Why there are no tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// The area is too small.
    #[error("the ACPI tables of {processors} processors take {size} bytes, more than there is room for")]
    TooLarge {
        /// Bytes taken.
        size: u64,
        /// Number of processors.
        processors: u8,
    },
}

/// The RSDP has 36 bytes; tables follow at a 16-byte border.
const RSDP_ROOM: usize = 48;

struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table; returns its guest address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = ACPI_START + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// Multiple APIC description table (ACPI 6.5, 5.2.12).
fn madt(processors: u8, start: ProcessorStart) -> Sdt {
    const REVISION: u8 = 5;
    let mut structures = Vec::new();
    for id in 0..processors {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut structures);
    }
    IoApic::new(0, IOAPIC, 0).to_aml_bytes(&mut structures);
    if start == ProcessorStart::Mailbox && processors > 1 {
        structures.extend(multiprocessor_wakeup());
    }
    let mut madt = Sdt::new(*b"APIC", 36, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let flags = 0u32;
    madt.append_slice(&[LOCAL_APIC, flags].map(u32::to_le_bytes).concat());
    madt.append_slice(&structures);
    madt
}

/// Multiprocessor wakeup structure (ACPI 6.5, 5.2.12.19): type, length, version, and the mailbox's address. With this
/// first version the guest can't park a processor again.
fn multiprocessor_wakeup() -> [u8; 16] {
    let mut structure = [0x10, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    structure[8..].copy_from_slice(&WAKEUP_MAILBOX.to_le_bytes());
    structure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(area: &[u8], address: u64) -> &[u8] {
        let start = (address - ACPI_START) as usize;
        let length = u32::from_le_bytes(area[start + 4..start + 8].try_into().unwrap()) as usize;
        &area[start..start + length]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_are_found_from_the_root_and_add_up() {
        let area = build(1, ProcessorStart::StartupInterrupt).unwrap();
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
        let xsdt = table(&area, u64::from_le_bytes(area[24..32].try_into().unwrap()));
        let mut found = vec![];
        for entry in xsdt[36..].chunks(8) {
            let entry = table(&area, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(entry), 0);
            if &entry[..4] == b"FACP" {
                let dsdt = table(&area, u64::from_le_bytes(entry[140..148].try_into().unwrap()));
                assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
            }
            found.push(entry[..4].to_vec());
        }
        assert_eq!((sum(xsdt), found), (0, vec![b"FACP".to_vec(), b"APIC".to_vec()]));
    }

    #[test]
    fn the_most_processors_fit() {
        assert!(build(u8::MAX, ProcessorStart::Mailbox).is_ok());
    }

    /// The structures of the MADT, each from its type on.
    fn madt_structures(processors: u8, start: ProcessorStart) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        madt(processors, start).to_aml_bytes(&mut bytes);
        assert_eq!((&bytes[..4], sum(&bytes)), (&b"APIC"[..], 0));
        assert_eq!(bytes[36..40], LOCAL_APIC.to_le_bytes());
        let (mut rest, mut found) = (&bytes[44..], vec![]);
        while !rest.is_empty() {
            let (structure, behind) = rest.split_at(rest[1].into());
            found.push(structure.to_vec());
            rest = behind;
        }
        found
    }

    #[test]
    fn each_processor_has_its_local_apic_and_the_mailbox_is_there_where_it_is_used() {
        for processors in [1, 2, 255] {
            for start in [ProcessorStart::StartupInterrupt, ProcessorStart::Mailbox] {
                let found = madt_structures(processors, start);
                let apics: Vec<_> = found.iter().filter(|structure| structure[0] == 0).cloned().collect();
                let expected: Vec<_> = (0..processors).map(|id| vec![0, 8, id, id, 1, 0, 0, 0]).collect();
                assert_eq!(apics, expected);
                let mailbox: Vec<_> = found.iter().filter(|structure| structure[0] == 0x10).collect();
                if start == ProcessorStart::Mailbox && processors > 1 {
                    assert_eq!(mailbox, [&[16, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0xf, 0, 0, 0, 0, 0]]);
                } else {
                    assert!(mailbox.is_empty());
                }
            }
        }
    }
}
