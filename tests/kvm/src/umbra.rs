//! The `umbra` program, run by a test and watched from outside.

pub mod anonymous_memory;
pub mod cgroup;
pub mod events;
pub mod process;
pub mod shared_memory;

use std::path::PathBuf;

use crate::requirement::Unavailable;

/// Names the program; `cargo lab test` sets it.
const VARIABLE: &str = "UMBRA_BIN";

/// The program to test.
///
/// # Errors
/// [`Unavailable`] if nobody says which one.
pub fn program() -> Result<PathBuf, Unavailable> {
    let path = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| {
        Unavailable::Needs(format!(
            "the path of an umbra program in {VARIABLE}: `cargo lab test` builds one and sets it"
        ))
    })
}
