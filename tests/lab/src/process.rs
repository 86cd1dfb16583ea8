//! Children that can't outlive the lab.
//!
//! A [`Family`] is a child in a process group of its own. Its group is killed once the child has ended, when the
//! `Family` is dropped and when a signal ends the lab; should the lab itself be killed, the kernel kills the child (`PR_SET_PDEATHSIG`). That last
//! guard is tied to the thread that started the child, so children are started by threads that wait for them.

#![expect(unsafe_code, reason = "Command::pre_exec is unsafe")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use rustix::io::{FdFlags, fcntl_setfd, retry_on_intr};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process_group, set_parent_process_death_signal, waitid,
};

use crate::interrupt::{Cleanup, on_interrupt};

/// A child and whatever it starts in its process group.
#[derive(Debug)]
pub struct Family {
    child: Child,
    ended: Option<ExitStatus>,
    cleanup: Option<Cleanup>,
}

impl Family {
    /// Starts `command`, which keeps `inherited` open under the same numbers.
    pub fn start(command: &mut Command, inherited: Vec<OwnedFd>) -> io::Result<Self> {
        command.process_group(0);
        let child = start(command, inherited)?;
        let group = Pid::from_child(&child);
        let cleanup = on_interrupt(move || {
            let _ = kill_process_group(group, Signal::KILL);
        });
        Ok(Self { child, ended: None, cleanup: Some(cleanup) })
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How the child ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitIdOptions::NOHANG)
    }

    /// Waits for the child to end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.reap(WaitIdOptions::empty())? {
                return Ok(status);
            }
        }
    }

    /// Kills the whole group and reaps the child.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            self.kill_group();
            self.ended = self.child.wait().ok();
        }
        self.cleanup = None;
    }

    /// Once the child has ended, kills what it left in its group, then reaps it: until then its number stays ours.
    fn reap(&mut self, options: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            let child = WaitId::Pid(Pid::from_child(&self.child));
            let ended =
                retry_on_intr(|| waitid(child.clone(), options | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT))?;
            if ended.is_some() {
                self.kill_group();
                self.ended = Some(self.child.wait()?);
                self.cleanup = None;
            }
        }
        Ok(self.ended)
    }

    fn kill_group(&self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a child that stays in the lab's own process group, for what asks the user something.
pub fn start_in_foreground(command: &mut Command) -> io::Result<Child> {
    start(command, Vec::new())
}

fn start(command: &mut Command, inherited: Vec<OwnedFd>) -> io::Result<Child> {
    let lab = getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(lab) {
            return Err(io::Error::from(io::ErrorKind::Interrupted)); // the lab died first
        }
        for descriptor in &inherited {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run. The closure makes system calls and builds
    // errors that do not allocate; it takes no lock.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}
