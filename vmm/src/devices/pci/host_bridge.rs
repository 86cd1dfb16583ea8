//! The host bridge, in the first slot: a guest looks for one to believe that there is a bus at all.

use super::Function;
use super::config_space::{ConfigSpace, Identity};

/// A generic host bridge of QEMU's vendor ID, which means nothing to drivers.
const IDENTITY: Identity = Identity { vendor: 0x1b36, device: 0x0008, revision: 0, class: (6, 0) };

/// The bridge.
#[derive(Debug)]
pub struct HostBridge(ConfigSpace);

impl Default for HostBridge {
    fn default() -> Self {
        Self(ConfigSpace::new(IDENTITY))
    }
}

impl Function for HostBridge {
    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&mut self, offset: u8, data: &[u8]) {
        self.0.write(offset, data);
    }
}
