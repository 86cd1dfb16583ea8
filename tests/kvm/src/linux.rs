//! A guest with Debian's kernel as it comes from its package, busybox, and a script: what tests of devices look through.
//!
//! The kernel, busybox and modules lie in a folder that [`FOLDER`] names; `cargo lab test` makes it. The machine runs in
//! this process, so that a test reaches its devices.
//!
//! The guest's first process runs the test's script. It talks to the test by lines on the serial port that begin with
//! `test: `, and the test talks to it by lines that it reads.

#[path = "../../lab/src/cpio.rs"]
mod cpio;
pub mod exchange;
pub mod initramfs;
pub mod machine;
pub mod namespace;
mod program;

use std::path::PathBuf;

use crate::requirement::Unavailable;

/// Names the folder with `vmlinuz`, `busybox` and `modules/*.ko`.
pub const FOLDER: &str = "UMBRA_GUEST";

/// The folder with what a guest is made of.
///
/// # Errors
/// [`Unavailable`] if nobody says where it is.
pub fn folder() -> Result<PathBuf, Unavailable> {
    let path = std::env::var_os(FOLDER).filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| {
        Unavailable::Needs(format!(
            "the path of a folder with vmlinuz, busybox and modules in {FOLDER}: `cargo lab test` makes one and sets it"
        ))
    })
}
