//! Why a device may not touch guest memory.

use std::io;

use super::sync::Arc;

/// What is in the way of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// The page is private.
    Private,
    /// The page is being converted to private.
    Converting,
    /// The page is RAM that devices may never use.
    NotForDevices,
    /// There is no RAM at this address.
    NotRam,
    /// The page is in another piece of RAM than those before it, where one piece was asked for.
    Apart,
}

impl Obstacle {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Private, Self::Converting, Self::NotForDevices, Self::NotRam, Self::Apart];
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Private => "is private",
            Self::Converting => "is being converted to private",
            Self::NotForDevices => "is not for devices",
            Self::NotRam => "is not RAM",
            Self::Apart => "is not in one piece with those before it",
        })
    }
}

/// An access that was refused: nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{owner} may not touch {size:#x} bytes at {gpa:#x}: the page at {page:#x} {obstacle}")]
pub struct RefusedAccess {
    /// Who wanted to.
    pub owner: Arc<str>,
    /// The first byte of the access.
    pub gpa: u64,
    /// Its size in bytes.
    pub size: usize,
    /// The first page that was in the way.
    pub page: u64,
    /// What is the matter with it.
    pub obstacle: Obstacle,
}

impl RefusedAccess {
    /// The refusal that an error of vm-memory's carries, if it is one.
    pub fn in_error(error: &vm_memory::GuestMemoryError) -> Option<&Self> {
        match error {
            vm_memory::GuestMemoryError::IOError(error) => error.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

impl From<RefusedAccess> for vm_memory::GuestMemoryError {
    fn from(refused: RefusedAccess) -> Self {
        Self::IOError(io::Error::new(io::ErrorKind::PermissionDenied, refused))
    }
}
