//! What the user types: one module for each command. `demo` is a module of its own.

use std::process::ExitCode;

pub mod bench;
pub mod build;
pub mod fuzz;
pub mod sh;
pub mod test;

/// This process's exit status for that of a job.
pub fn exit_code(status: i32) -> ExitCode {
    u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from)
}
