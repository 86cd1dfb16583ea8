//! The end of a machine: what is over once no vCPU runs, however it came to that.
//!
//! Handles of a machine may outlive it, and so what they reach: its memory, and the manager of its devices. What these hold
//! of the host must not, and whoever still asks something of them gets an error instead of waiting.

use std::sync::Arc;

use super::{Control, Stop};
use crate::devices::Devices;
use crate::memory::GuestRam;

/// A machine that others can reach. Dropped, it is over: its control says so, no helper runs, nothing is converted, no device
/// is left.
pub(super) struct Ending {
    pub(super) control: Arc<Control>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) devices: Arc<Devices>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Where there is a reason already, that one counts.
        self.control.end(Ok(Stop::Requested));
        self.control.helpers().end();
        self.ram.end_conversions();
        self.devices.manager.end();
        self.devices.custom.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::config::DiskConfig;
    use crate::memory::ConversionError;
    use crate::memory::conversion::Policy;
    use crate::vcpu::tests::context;
    use arch::x86_64::private_faults::{ConversionKind, ConversionRequest, Origin};
    use hypervisor::{GpaRange, PageState};

    #[test]
    fn whoever_still_has_a_handle_finds_the_machine_ended() {
        let context = context(Policy::default());
        let (control, ram, devices) = (context.control, context.ram, context.devices);
        drop(Ending { control: control.clone(), ram: ram.clone(), devices: devices.clone() });
        assert!(matches!(control.nmi(), Err(Error::Ended)));
        assert_eq!(control.take_outcome().unwrap(), Stop::Requested);
        let range = GpaRange::new(2 << 20, 4096).unwrap();
        let request =
            ConversionRequest { range, to: PageState::Shared, kind: ConversionKind::Host, origin: Origin::Host };
        assert!(matches!(ram.convert(request), Err(ConversionError::Stopped)));
        let disk =
            DiskConfig { id: None, path: "disk".into(), readonly: true, queues: 1, queue_size: 64, serial: None };
        assert!(matches!(devices.manager.add_disk(disk), Err(Error::Ended)));
    }

    #[test]
    fn the_reason_that_a_machine_ended_for_stays() {
        let context = context(Policy::default());
        let (control, ram, devices) = (context.control, context.ram, context.devices);
        control.end(Ok(Stop::Reset));
        drop(Ending { control: control.clone(), ram, devices });
        assert_eq!(control.take_outcome().unwrap(), Stop::Reset);
    }
}
