//! The lines by which the demonstration's guest (`demo/guest_init.sh`) tells how far it is, and what it is told.

/// The first line of the guest's init.
pub const INIT: &str = "umbra-demo: init";
/// The guest's memory holds the canary.
pub const CANARY_IN_PLACE: &str = "umbra-demo: canary fills 1048576 bytes";
/// The guest's shell has ended, and the guest powers off.
pub const SHELL_ENDED: &str = "umbra-demo: shell has ended";
/// Begins each of these lines.
pub const PREFIX: &str = "umbra-demo: ";
/// The word of the kernel's command line that carries the seed of the canary.
pub const SEED_PARAMETER: &str = "umbra.seed=";
