//! An output that never makes its writer wait: what a console should write to, so that pauses are prompt.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

/// As much as a pipe takes at once when it takes anything (pipe(7), `PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// A descriptor as an output: a file, a pipe or a terminal. It says that it would block where it would.
pub struct PromptOutput(Arc<OwnedFd>);

impl PromptOutput {
    /// Writes to this descriptor, whose flags stay as they are: others may have it, too.
    ///
    /// A terminal may say that it takes something and then wait for room for the rest. So it is opened anew, for writes that
    /// don't wait, where that can be done.
    pub fn new(descriptor: Arc<OwnedFd>) -> Self {
        if !rustix::termios::isatty(&*descriptor) {
            return Self(descriptor);
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let again = rustix::fs::open(format!("/proc/self/fd/{}", descriptor.as_raw_fd()), flags, Mode::empty());
        Self(again.map_or(descriptor, Arc::new))
    }
}

impl Write for PromptOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut ready = [PollFd::new(&*self.0, PollFlags::OUT)];
        match poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(rustix::io::write(&*self.0, &bytes[..bytes.len().min(AT_ONCE)])?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_would_block_and_goes_on_when_it_is_read() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut output = PromptOutput::new(Arc::new(write));
        let (mut written, mut seen) = (0, 0);
        while let Ok(count) = output.write(&[7; 10_000]) {
            written += count;
        }
        assert!(written > 0 && written.is_multiple_of(AT_ONCE));
        assert_eq!(output.write(&[7]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut bytes = vec![0; written];
        while seen < written {
            seen += rustix::io::read(&read, &mut bytes[seen..]).unwrap();
        }
        assert_eq!(output.write(&[8]).unwrap(), 1);
        drop(read);
        assert_eq!(output.write(&[8]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
