//! Network devices on taps, each test in a network namespace of its own. Where those may not be made, the tests count as
//! ignored, and a line says so.

#[path = "../virtio/driver.rs"]
mod driver;
mod frames;
#[path = "../virtio/guest.rs"]
mod guest;
mod hostile;
mod packet;
mod setup;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    // One at a time: a test counts the descriptors of the process.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let possible = std::thread::spawn(world::enter_namespace).join().unwrap_or_else(|_| Err("a panic".into()));
    if let Err(reason) = &possible {
        eprintln!("tests of network devices are ignored: {reason}");
    }
    let tests = [frames::TESTS, hostile::TESTS, setup::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test)| {
        let run = move || {
            // A thread of its own: it never leaves the namespace.
            let thread = std::thread::spawn(move || world::enter_namespace().map(|()| test()));
            match thread.join() {
                Ok(result) => Ok(result?),
                Err(_) => Err("it panicked".into()),
            }
        };
        Trial::test(name, run).with_ignored_flag(possible.is_err())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
