//! Threads that wait for the world outside on behalf of a machine, such as a pipe's reader, and are gone when it is over.
//!
//! Each gets a descriptor that becomes readable when it is to end, to wait for beside the rest. So none holds up the end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

/// The threads. They must be ended by [`Helpers::end`]; a thread may hold what holds them.
#[derive(Default)]
pub(crate) struct Helpers(Mutex<Vec<Helper>>);

struct Helper {
    /// What the thread was given.
    ended: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Helpers {
    fn helpers(&self) -> MutexGuard<'_, Vec<Helper>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread, which gets what becomes readable when it is to end.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub(crate) fn start(&self, name: &str, body: impl FnOnce(&OwnedFd) + Send + 'static) -> io::Result<()> {
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let own = ended.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || body(&own))?;
        let mut helpers = self.helpers();
        helpers.retain(|helper| !helper.thread.is_finished());
        helpers.push(Helper { ended, thread });
        Ok(())
    }

    /// Ends all of them. The machine must be ending, so that none is started any more and those that look see it.
    pub(crate) fn end(&self) {
        let helpers = std::mem::take(&mut *self.helpers());
        for helper in &helpers {
            // It can't fail: the counter would have to be at its end.
            let _ = rustix::io::write(&*helper.ended, &1u64.to_ne_bytes());
        }
        for helper in helpers {
            // A panic of its own was reported when it happened.
            let _ = helper.thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn all_are_gone_once_they_were_ended() {
        let helpers = Helpers::default();
        let alive = Arc::new(());
        for _ in 0..3 {
            let own = alive.clone();
            let wait = move |ended: &OwnedFd| {
                // As long as it takes.
                poll(&mut [PollFd::new(ended, PollFlags::IN)], None).unwrap();
                drop(own);
            };
            helpers.start("helper", wait).unwrap();
        }
        assert_eq!(Arc::strong_count(&alive), 4);
        helpers.end();
        assert_eq!(Arc::strong_count(&alive), 1);
        helpers.end();
    }
}
