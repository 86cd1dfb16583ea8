//! Output of the serial port, to which a vCPU writes itself.
//!
//! A file that takes nothing (a pipe that nobody reads) holds the guest up, but never the end of the machine nor its pauses.
//! What a vCPU is writing when the machine pauses is kept, and written once it goes on, before anything else.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};

use super::LOOK;
use crate::devices::virtio::console::output::PromptOutput;
use crate::machine::Control;

/// A writer that waits until its file takes something, but not longer than the machine lives and runs.
pub(super) struct Patient {
    file: Arc<OwnedFd>,
    control: Arc<Control>,
    kept: Arc<Mutex<Kept>>,
}

/// What a pause came in between of.
struct Kept {
    output: PromptOutput,
    /// A byte for each vCPU and pause, at the most.
    bytes: Vec<u8>,
    /// There is a thread that writes them once the machine goes on.
    awaited: bool,
}

impl Kept {
    /// Writes what the file takes without waiting. Returns whether that was all.
    fn put_out(&mut self) -> io::Result<bool> {
        while !self.bytes.is_empty() {
            match self.output.write(&self.bytes) {
                Ok(written) => drop(self.bytes.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        Ok(true)
    }
}

impl Patient {
    /// For one machine.
    pub(super) fn new(file: Arc<OwnedFd>, control: Arc<Control>) -> Self {
        let kept = Kept { output: PromptOutput::new(file.clone()), bytes: Vec::new(), awaited: false };
        Self { file, control, kept: Arc::new(Mutex::new(kept)) }
    }

    /// Starts a thread that writes what is kept once the machine goes on: the guest may have nothing more to say. It ends
    /// with that, or with the machine.
    fn write_later(&self, kept: &mut Kept) {
        let (file, control, shared) = (self.file.clone(), self.control.clone(), self.kept.clone());
        let wait = move |ended: &OwnedFd| {
            let ended = || PollFd::new(ended, PollFlags::IN);
            loop {
                let ending = control.is_ending();
                if !control.is_paused() || ending {
                    let mut kept = lock(&shared);
                    // A failure is told when the guest writes next.
                    if ending || kept.put_out().unwrap_or(true) {
                        kept.awaited = false;
                        return;
                    }
                    drop(kept);
                    let _ = poll(&mut [PollFd::new(&*file, PollFlags::OUT), ended()], Some(&LOOK));
                } else {
                    // Nothing else to wait for but the time.
                    let _ = poll(&mut [ended()], Some(&LOOK));
                }
            }
        };
        // Without a thread the guest's next write does it.
        kept.awaited = kept.awaited || self.control.helpers().start("console", wait).is_ok();
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // Nothing in there panics half-way.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = lock(&self.kept);
        kept.bytes.extend_from_slice(bytes);
        loop {
            // First of all: a file that takes it gets it, whatever becomes of the machine.
            if kept.put_out()? {
                return Ok(bytes.len());
            }
            // Nobody waits for what a machine that has ended still says; a paused one says it later.
            if self.control.is_ending() {
                return Ok(bytes.len());
            }
            if self.control.is_paused() {
                self.write_later(&mut kept);
                return Ok(bytes.len());
            }
            drop(kept);
            match poll(&mut [PollFd::new(&*self.file, PollFlags::OUT)], Some(&LOOK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            kept = lock(&self.kept);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.kept).put_out().map(drop)
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        // The last chance of what a pause or the end came in between of.
        let _ = lock(&self.kept).put_out();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;
    use crate::Stop;

    /// A pipe that takes nothing more.
    fn full_pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::empty()).unwrap();
        (reader, writer)
    }

    #[test]
    fn what_a_pause_interrupts_is_written_later_and_in_order() {
        let (reader, writer) = full_pipe();
        let control = Arc::new(Control::new(Vec::new(), true));
        let mut output = Patient::new(Arc::new(writer), control.clone());
        control.pause();
        // Nobody reads, and neither waits.
        assert_eq!((output.write(b"a").unwrap(), output.write(b"b").unwrap()), (1, 1));
        control.resume();
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            File::from(reader).read_to_end(&mut all).unwrap();
            all
        });
        assert_eq!(output.write(b"c").unwrap(), 1);
        drop(output);
        assert!(reading.join().unwrap().ends_with(b".abc"));
    }

    #[test]
    fn what_a_pause_interrupts_is_written_although_the_guest_says_nothing_more() {
        let (reader, writer) = full_pipe();
        let control = Arc::new(Control::new(Vec::new(), true));
        let mut output = Patient::new(Arc::new(writer), control.clone());
        control.pause();
        assert_eq!(output.write(b"a").unwrap(), 1);
        control.resume();
        let mut reader = File::from(reader);
        let mut byte = [0];
        while byte != *b"a" {
            reader.read_exact(&mut byte).unwrap();
        }
    }

    #[test]
    fn who_waits_for_a_reader_that_never_comes_is_gone_with_the_machine() {
        for resumed in [false, true] {
            let (_reader, writer) = full_pipe();
            let control = Arc::new(Control::new(Vec::new(), true));
            let mut output = Patient::new(Arc::new(writer), control.clone());
            control.pause();
            assert_eq!(output.write(b"a").unwrap(), 1);
            assert_eq!(Arc::strong_count(&control), 3, "the writer, and the thread that waits");
            if resumed {
                control.resume();
            }
            control.end(Ok(Stop::PowerOff));
            control.helpers().end();
            assert_eq!(Arc::strong_count(&control), 2);
            drop(output);
        }
    }

    #[test]
    fn a_file_gets_all_that_a_machine_says_although_it_pauses_or_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let control = Arc::new(Control::new(Vec::new(), true));
        let mut output = Patient::new(Arc::new(file.reopen().unwrap().into()), control.clone());
        control.pause();
        output.write_all(b"paused").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"paused");
        control.end(Ok(Stop::PowerOff));
        output.write_all(b", ended").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"paused, ended");
    }
}
