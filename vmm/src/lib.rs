//! The virtual machine monitor: guest memory and its conversions, devices, vCPUs, and the machine they make.
//!
//! ```text
//! config ──► machine ──► memory (layout, attribute map, conversions) ──► hypervisor
//!               │  └───► vcpu (exits) ──► memory, devices, paravirtual
//!               └──────► devices (serial console, power) ──► console (terminal or file)
//! ```
//!
//! Threads: one for each vCPU, one for console input, and the caller's. Everything that the guest controls is handled on
//! its own vCPU's thread, so a guest can only delay itself.

pub mod config;
pub mod console;
pub mod devices;
mod error;
pub mod events;
pub mod machine;
pub mod memory;
mod paravirtual;
mod vcpu;

pub use config::VmConfig;
pub use error::{Error, Result};
pub use machine::{Machine, Stop};
