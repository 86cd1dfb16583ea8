//! Guard against conversion, in every interleaving and with every reordering that the memory model allows.
//!
//! The sources are the product's own, from `vmm/src/memory/guarded`, compiled here against [loom]'s atomics instead of
//! the standard library's: only their `sync` module is another one. It can also weaken each of the orderings that the
//! sources name, one at a time, so that the tests can show that loom refutes the protocol without it.
//!
//! `cargo test -p interleavings` runs all of it, in seconds.

// The product's sources bring unit tests of their own, which need real atomics: they run in `vmm`.
#![cfg(not(test))]
#![allow(dead_code, reason = "the product's sources have more uses than the scenarios do")]

#[path = "../../../vmm/src/memory/guarded/guard.rs"]
mod guard;
#[path = "../../../vmm/src/memory/guarded/guards.rs"]
mod guards;
#[path = "../../../vmm/src/memory/guarded/in_flight.rs"]
mod in_flight;
#[path = "../../../vmm/src/memory/guarded/pages.rs"]
mod pages;
#[path = "../../../vmm/src/memory/guarded/pins.rs"]
mod pins;
#[path = "../../../vmm/src/memory/guarded/quiesce.rs"]
mod quiesce;
#[path = "../../../vmm/src/memory/guarded/runs.rs"]
mod runs;
#[path = "../../../vmm/src/memory/guarded/state_plane.rs"]
mod state_plane;
#[path = "../../../vmm/src/memory/guarded/sub_states.rs"]
mod sub_states;
mod sync;
#[path = "../../../vmm/src/memory/guarded/writer.rs"]
mod writer;

pub mod scenarios;

pub use guards::Guards;
pub use pages::PageRange;
pub use quiesce::{Quiesce, Report, WaitForGuards};
pub use sync::{Weakening, with};
