//! The virtual machine monitor: guest memory and its conversions, devices, vCPUs, and the machine they make.
//!
//! ```text
//! config ──► machine ──► memory (layout, attribute map, conversions) ──► hypervisor
//!               │  └───► vcpu (exits) ──► memory, devices, paravirtual
//!               └──────► devices (PCI bus, virtio devices, serial port) ──► files, taps, sockets, terminal
//! ```
//!
//! Threads: one for each vCPU and for each device or queue that works by itself, one that gives memory back (`discard`), one
//! that populates memory while a guest of `software` boots (`populate`), one for console input (`console`), and the
//! caller's. Others come and go: one reminds the guest of an event that it has not read (`events`, by [`devices::manager`]),
//! one writes events that the monitor's file does not take at once (`events`, by [`mod@events`]), one writes what the serial
//! port's file did not take before a pause (`console`). What a guest asks for is handled on its own vCPU's thread or on that of
//! its device, so a guest can only delay itself.

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
