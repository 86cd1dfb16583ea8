//! A network of a test's own, where it makes what interfaces it likes and meets nobody else's.
#![expect(unsafe_code, reason = "unsharing can leave threads of one process in different namespaces")]

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::requirement::Unavailable;

/// Runs a test in a thread that has a network namespace to itself, as do the sockets and taps that the thread makes. Threads
/// that are there already stay where they are.
///
/// # Errors
/// The test's, and [`Unavailable`] for a user that may make no namespace.
pub fn in_own_network(test: impl FnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    let run = || {
        // SAFETY: the flag is that of the network namespace alone, so descriptors, memory and file systems stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|error| Unavailable::Needs(format!("a network namespace, which takes root: {error}")))?;
        test()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
