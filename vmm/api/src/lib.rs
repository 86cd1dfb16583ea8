//! The REST API: Cloud Hypervisor's names, verbs, bodies and codes over a unix socket, and Umbra's own endpoints for memory.
//!
//! ```text
//! socket ──► server ──► routes/NAME.rs ──► controller ──► host (builds machines) ──► guest (one that runs)
//!            (peer,      (one handler      (one machine,
//!             limits)     and its test)     its life)
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`types`] | what requests and answers look like: serde and the document's schemas from one definition |
//! | [`convert`] | from those to `vmm::config`: each field honoured, accepted without effect, or refused with the reason |
//! | [`routes`] | one handler a file, with its path, its documentation and its test; [`document`] and routes come from it |
//! | [`controller`] | the machine's life: created, running, paused, shut down |
//! | [`host`] | what builds machines: KVM, or [`model`] for tests |
//! | [`server`] | the socket, who may use it, and how long |
//! | [`client`] | calls an operation by its name; method and path come from the document |
//!
//! A new endpoint is one file in `routes/` and one line in `routes.rs`.
//!
//! Guarantees: only the owner of the process and root get an answer; a request of any size costs bounded memory and time; a
//! mistake of the client's is a 4xx whose body is the chain of causes, and changes nothing; 5xx is a failure of our own.
//!
//! Cost: one thread that serves, some more while requests wait for the machine.

pub mod client;
pub mod controller;
pub mod convert;
pub mod document;
mod error;
mod extract;
pub mod host;
pub mod model;
pub mod picture;
pub mod routes;
pub mod server;
pub mod types;

pub use controller::{Controller, Settings};
pub use error::ApiError;

/// Where all paths begin.
pub const ROOT: &str = "/api/v1";

#[cfg(test)]
mod testing;
