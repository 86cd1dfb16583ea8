//! What the tests on real KVM share.
//!
//! Eight test binaries use it. `facts` pins down what the kernel does when it is asked directly, illegal arguments
//! included: what the rest of the project relies on ([`raw`]). `contracts` goes through the traits of the `hypervisor`
//! crate, with a guest that touches pages, on KVM and on the model ([`backend`], [`guest`], [`memory`]). `memory_core`
//! does the same to the memory core of the `vmm` crate ([`race`]). `hostile` and `command_line` run the
//! `umbra` program itself ([`umbra`]): the one with a guest that does what no guest should ([`hostile`]), the other with
//! bad arguments. `machine` steers the `vmm` crate's machine from inside its own process, with a guest whose processors all
//! work at once ([`swarm`]). `devices` lets a Debian kernel find and use the
//! devices of a machine ([`linux`]). `api` asks a server that has a real guest.
//!
//! A test that the host can't run is reported as ignored, with the reason in one line, and never as passed
//! ([`requirement`], [`trial`]). Inside the lab (`UMBRA_LAB=1`) everything is offered, so there it fails.

pub mod backend;
pub mod expect;
pub mod guest;
pub mod hostile;
pub mod linux;
pub mod memory;
pub mod pattern;
pub mod race;
pub mod raw;
pub mod requirement;
pub mod swarm;
pub mod trial;
pub mod umbra;

pub use hypervisor::PAGE_SIZE as PAGE;
