//! Giving back the memory of shared pages whose contents the guest does not need, for a balloon.
//!
//! Only where no page is ever converted: elsewhere what lies behind a page is a matter of conversions and their discards.

use std::io;

use hypervisor::{Backing, GpaRange};

use super::GuestRam;
use crate::devices::virtio::balloon::ReclaimPages;

impl ReclaimPages for GuestRam {
    fn size(&self) -> u64 {
        self.layout.size()
    }

    fn reclaim(&self, pages: GpaRange) -> io::Result<()> {
        if self.layout.converts() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "memory that is converted is not given back"));
        }
        let backing = Backing::Shared(self.shared.clone());
        let mut found = 0;
        for ram in self.layout.ranges() {
            let (start, end) = (pages.start().max(ram.gpa.start()), pages.end().min(ram.gpa.end()));
            if start < end {
                let offset = ram.offset + (start - ram.gpa.start());
                self.vm.discard(&backing, offset, end - start).map_err(io::Error::other)?;
                found += end - start;
            }
        }
        if found < pages.len() { Err(io::Error::new(io::ErrorKind::NotFound, "not all of it is RAM")) } else { Ok(()) }
    }
}
