//! What is wired to a VM: events at interrupt lines and at addresses, and the messages that lines send.
//!
//! An event is known by what is behind its descriptor, as in KVM: a copy of the descriptor is the same event.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

use crate::traits::check_routes;
use crate::{MAX_GSI, MsiRoute};

type Result = std::result::Result<(), i32>;

/// What an event is known by: `eventfd-id` of the kernel's.
type Identity = String;

#[derive(Debug, Default)]
pub(super) struct Wires {
    lines: Vec<(u32, Identity)>,
    addresses: BTreeMap<u64, Identity>,
    routes: Vec<MsiRoute>,
}

impl Wires {
    pub(super) fn add_line(&mut self, event: &EventFd, gsi: u32) -> Result {
        let event = identity(event.as_raw_fd())?;
        // KVM wires an event to one line at most.
        if self.lines.iter().any(|(_, other)| *other == event) {
            return Err(libc::EBUSY);
        }
        self.lines.push((gsi, event));
        Ok(())
    }

    pub(super) fn remove_line(&mut self, event: &EventFd, gsi: u32) -> Result {
        let wire = (gsi, identity(event.as_raw_fd())?);
        // KVM takes it if there is nothing to undo.
        self.lines.retain(|other| *other != wire);
        Ok(())
    }

    pub(super) fn add_address(&mut self, event: BorrowedFd<'_>, gpa: u64) -> Result {
        let event = identity(event.as_raw_fd())?;
        if self.addresses.contains_key(&gpa) {
            return Err(libc::EEXIST);
        }
        self.addresses.insert(gpa, event);
        Ok(())
    }

    pub(super) fn remove_address(&mut self, event: BorrowedFd<'_>, gpa: u64) -> Result {
        let event = identity(event.as_raw_fd())?;
        if self.addresses.get(&gpa) != Some(&event) {
            return Err(libc::ENOENT);
        }
        self.addresses.remove(&gpa);
        Ok(())
    }

    pub(super) fn set_routes(&mut self, routes: &[MsiRoute]) -> Result {
        check_routes(routes)?;
        self.routes = routes.to_vec();
        self.routes.sort_by_key(|route| route.gsi);
        Ok(())
    }

    pub(super) fn routes(&self) -> Vec<MsiRoute> {
        self.routes.clone()
    }

    pub(super) fn lines(&self) -> Vec<u32> {
        let mut lines: Vec<u32> = self.lines.iter().map(|(gsi, _)| *gsi).filter(|gsi| *gsi <= MAX_GSI).collect();
        lines.sort_unstable();
        lines
    }

    pub(super) fn addresses(&self) -> Vec<u64> {
        self.addresses.keys().copied().collect()
    }
}

/// What the kernel says of an eventfd; EINVAL for any other descriptor, as KVM says.
fn identity(descriptor: i32) -> std::result::Result<Identity, i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).map_err(|_| libc::EBADF)?;
    info.lines().find(|line| line.starts_with("eventfd-id:")).map(str::to_owned).ok_or(libc::EINVAL)
}
