//! The conversion engine on the model of KVM: random sequences, each call failing, listeners, waiting, the backlog, policy.
//!
//! The model lets one look at what KVM hides, so after each step everything is compared. `tests/kvm` runs the same engine
//! on the real KVM.

#![cfg(test)]

mod backlog;
mod changing_policy;
mod concurrent;
mod failures;
mod listeners;
mod policy;
mod properties;
mod reference;
mod sequence;
mod statistics;
mod waiting;
mod world;
