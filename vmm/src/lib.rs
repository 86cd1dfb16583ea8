//! The virtual machine monitor: guest memory and its conversions, devices, vCPUs, and the machine they make.
//!
//! ```text
//! config ──► machine ──► memory (layout, attribute map, conversions) ──► hypervisor
//!               │  └───► vcpu (exits) ──► memory, devices, paravirtual
//!               └──────► devices (PCI bus, virtio devices, serial port) ──► files, taps, sockets, terminal
//! ```
//!
//! Threads: one for each vCPU and for each device or queue that works by itself, one that gives memory back, one for console
//! input, and the caller's. What a guest asks for is handled on its own vCPU's thread or on that of its device, so a guest
//! can only delay itself.

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
