//! A guest that makes transfers when it is told to.
//!
//! A thread has it, with a network namespace of its own: all guests have the same address, as their image says, and so has
//! the host's end of each tap. What the thread starts is in that namespace, too.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, Result, anyhow, ensure};

use super::MIB;
use crate::inside::full::machine::{Kind, Vm};
use crate::inside::full::network::{self, HOST};
use crate::inside::full::peer::Peer;
use crate::inside::full::{self, STEP};
use crate::inside::guest::new_seed;

const SCRIPT: &str = include_str!("../full/guest/io.sh");
/// Where the guest has its file, and the data for it.
const FILE: &str = "/var/tmp/io";
const DATA: &str = "/dev/shm/io";

/// The guest, as those see it who tell it what to do.
pub struct Guest<'scope> {
    kind: &'static Kind,
    tell: Sender<&'static str>,
    times: Receiver<u64>,
    thread: Option<ScopedJoinHandle<'scope, Result<()>>>,
}

impl<'scope> Guest<'scope> {
    /// Boots it, and waits until it is ready.
    pub fn start(scope: &'scope Scope<'scope, '_>, args: &'scope full::Args, kind: &'static Kind) -> Result<Self> {
        let (tell, told) = channel();
        let (time, times) = channel();
        let thread = scope.spawn(move || serve(args, kind, &told, &time));
        let mut guest = Self { kind, tell, times, thread: Some(thread) };
        guest.answer()?;
        Ok(guest)
    }

    /// What kind of machine it has.
    pub fn name(&self) -> &'static str {
        self.kind.name
    }

    /// Has a transfer made; returns how many nanoseconds it took.
    pub fn transfer(&mut self, transfer: &'static str) -> Result<u64> {
        // If nobody listens, there is no answer either.
        let _ = self.tell.send(transfer);
        self.answer()
    }

    /// Has it tell whether it bounced what it transferred, as it should, and ends it.
    pub fn end(self) -> Result<()> {
        let Self { tell, thread, .. } = self;
        drop(tell);
        thread.map_or(Ok(()), join)
    }

    fn answer(&mut self) -> Result<u64> {
        self.times.recv().map_err(|_| {
            let ended = self.thread.take().map_or(Ok(()), join);
            ended.err().unwrap_or_else(|| anyhow!("the guest of {} is gone", self.kind.name))
        })
    }
}

fn join(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow!("what steers a guest failed"))?
}

fn serve(args: &full::Args, kind: &Kind, told: &Receiver<&'static str>, times: &Sender<u64>) -> Result<()> {
    network::enter()?;
    let mut vm = Vm::start(args, kind, new_seed()?)?;
    let result = transfers(&mut vm, kind, told, times);
    result.map_err(|error| vm.explain(error.context(kind.name), args.plan.show_console))
}

/// Answers once when the guest is ready, and once for each transfer.
fn transfers(vm: &mut Vm<'_>, kind: &Kind, told: &Receiver<&'static str>, times: &Sender<u64>) -> Result<()> {
    vm.log_in()?;
    run(vm, "prepare", "0")?;
    let _ = times.send(0); // whoever has gone away tells nothing any more
    for transfer in told {
        let peer = Peer::listen(HOST)?;
        let port = peer.port()?;
        let host = transfer.starts_with("network").then(|| peer.serve(MIB << 20));
        let said = run(vm, transfer, &port)?;
        host.map_or(Ok(Ok(())), |host| host.join())
            .map_err(|_| anyhow!("the host's end of the connection failed"))??;
        let time = said.trim().parse().with_context(|| format!("the guest said {said:?}"))?;
        let _ = times.send(time);
    }
    let bounced = run(vm, "bounced", "0")?.trim() != "0";
    let expected = kind.name != "none";
    ensure!(bounced == expected, "whether it bounced what it transferred: {bounced}; expected {expected}");
    Ok(())
}

fn run(vm: &Vm<'_>, what: &str, port: &str) -> Result<String> {
    let mib = MIB.to_string();
    vm.ssh.run(SCRIPT, &[what, FILE, DATA, HOST, port, &mib], STEP).with_context(|| format!("{what}: failed"))
}

#[cfg(test)]
mod tests {
    use super::super::TRANSFERS;
    use super::*;

    #[test]
    fn the_script_makes_each_transfer_with_the_peer_and_times_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
        // Not every file system of a machine that runs tests knows direct transfers.
        let script = SCRIPT.replace("oflag=direct", "").replace("iflag=direct", "");
        let run = |what: &str, port: &str| {
            let arguments = ["-c", &script, "guest", what, &at("file"), &at("data"), "127.0.0.1", port, "1"];
            let output = std::process::Command::new("bash").args(arguments).output().unwrap();
            assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run("prepare", "0"), "");
        assert_eq!(std::fs::read(at("file")).unwrap(), std::fs::read(at("data")).unwrap());
        for transfer in TRANSFERS {
            let peer = Peer::listen("127.0.0.1").unwrap();
            let port = peer.port().unwrap();
            let host = transfer.starts_with("network").then(|| peer.serve(1 << 20));
            assert!(run(transfer, &port).trim().parse::<u64>().unwrap() > 0, "{transfer}");
            host.into_iter().for_each(|host| host.join().unwrap().unwrap());
        }
    }
}
