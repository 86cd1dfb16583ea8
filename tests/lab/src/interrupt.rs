//! What happens on Ctrl-C and on SIGTERM: whatever is registered here is undone, latest first, and the lab exits with
//! 128 plus the signal's number.
//!
//! A registration lasts as long as its [`Cleanup`]. The handler runs on a thread, so a registered function may lock,
//! kill and remove files.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

type Action = Box<dyn FnOnce() + Send>;

static ACTIONS: Mutex<Registry> = Mutex::new(Registry { next: 0, actions: Vec::new() });

struct Registry {
    next: u64,
    actions: Vec<(u64, Action)>,
}

fn registry() -> MutexGuard<'static, Registry> {
    ACTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handles the signals from now on.
pub fn handle_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                end(128 + signal);
            }
        })
        .context("cannot start a thread for signals")?;
    Ok(())
}

/// Undoes everything that is registered and exits.
fn end(status: i32) -> ! {
    // The lock is kept: nobody can register any more, and a thread that would undo the same waits until we are gone.
    let mut registry = registry();
    while let Some((_, action)) = registry.actions.pop() {
        action();
    }
    std::process::exit(status)
}

/// Keeps an action registered.
#[must_use = "the action is forgotten when this is dropped"]
#[derive(Debug)]
pub struct Cleanup(u64);

/// Registers `action` to be run if a signal ends the lab.
pub fn on_interrupt(action: impl FnOnce() + Send + 'static) -> Cleanup {
    let mut registry = registry();
    let number = registry.next;
    registry.next += 1;
    registry.actions.push((number, Box::new(action)));
    Cleanup(number)
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        registry().actions.retain(|(number, _)| *number != self.0);
    }
}
