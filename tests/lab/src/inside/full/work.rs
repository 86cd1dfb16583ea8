//! What the guest is put to: its disk, its network, and the canary in its memory while both are busy.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

use super::machine::Vm;
use super::network::HOST;
use super::peer::Peer;
use super::{STEP, milliseconds, step};
use crate::demo::figures::{MemoryStats, VmFigures};
use crate::demo::full::figures::Full;
use crate::inside::guest::Searcher;
use crate::inside::smaps;

/// What is written to the disk and read back.
const DISK_MIB: u64 = 256;
/// What goes over the network in each direction.
const NETWORK_MIB: u64 = 64;
/// Where the guest has the file that it wrote, and where the canary, which is a file system in memory.
const DISK_FILE: &str = "/var/tmp/data";
const CANARY_FILE: &str = "/run/umbra/canary";
/// How large the canary is: as in the short demonstration.
const CANARY_BYTES: u64 = 1 << 20;

/// Writes random bytes to the disk, reads them back from it, and compares.
pub fn use_disk(vm: &Vm<'_>, full: &mut Full) -> Result<()> {
    let said = step(&format!("wrote and verified {DISK_MIB} MiB on the disk"), || {
        vm.ssh.run(include_str!("guest/disk.sh"), &[DISK_FILE, &DISK_MIB.to_string()], STEP)
    })?;
    let answer = Answer::read(&said);
    full.disk_bytes = DISK_MIB << 20;
    full.disk_write_ms = answer.number("write_ms")?;
    full.disk_read_ms = answer.number("read_ms")?;
    Ok(())
}

/// Sends random bytes to the guest and has as many sent back; both ends sum up what they send and what they get.
pub fn use_network(vm: &Vm<'_>, full: &mut Full) -> Result<()> {
    let peer = Peer::listen(HOST)?;
    let port = peer.port()?;
    let host = peer.exchange(NETWORK_MIB << 20);
    let said = step(&format!("transferred {NETWORK_MIB} MiB over the network in each direction"), || {
        vm.ssh.run(include_str!("guest/network.sh"), &[HOST, &port, &NETWORK_MIB.to_string()], STEP)
    })?;
    let host = host.join().map_err(|_| anyhow::anyhow!("the host's end of the connection failed"))??;
    let guest = Answer::read(&said);
    ensure!(guest.text("received")? == host.sent, "the guest received something else than was sent");
    ensure!(guest.text("sent")? == host.received, "the guest sent something else than was received");
    full.network_bytes = NETWORK_MIB << 20;
    full.network_to_guest_ms = milliseconds(host.send_time);
    full.network_from_guest_ms = milliseconds(host.receive_time);
    Ok(())
}

/// Plants the canary, keeps disk and network busy, searches the VMM, and has `meanwhile` done before the load ends.
pub fn search_while_busy(
    vm: &mut Vm<'_>,
    searcher: &Searcher,
    full: &mut Full,
    meanwhile: impl FnOnce(&mut Vm<'_>, &AtomicU64, &mut Full) -> Result<()>,
) -> Result<VmFigures> {
    let said = step("planted the canary", || vm.ssh.run(include_str!("guest/canary.sh"), &[CANARY_FILE], STEP))?;
    let answer = Answer::read(&said);
    ensure!(answer.number("bytes")? == CANARY_BYTES, "the guest's canary has {} bytes", answer.number("bytes")?);
    ensure!(answer.text("kind")? == "tmpfs", "the guest's canary is not in memory but on {}", answer.text("kind")?);
    full.processors = answer.number("processors")?;

    let peer = Peer::listen(HOST)?;
    let port = peer.port()?;
    let traffic: Arc<AtomicU64> = peer.sink();
    let load = vm.ssh.start(include_str!("guest/busy.sh"), &[HOST, &port, DISK_FILE])?;
    let before = step("made disk and network busy", || vm.wait_above(&traffic, 0))?;
    let pid = vm.guest.pid();
    let vmm_rss_bytes = smaps::own_memory(pid)?;
    let search = step("searched the VMM for the canary", || searcher.search(pid, &vm.seed, STEP))?;
    full.busy_bytes = traffic.load(Ordering::Relaxed).saturating_sub(before);
    ensure!(full.busy_bytes > 0, "the network stood still during the search");
    let memory: MemoryStats = vm.api.get("vm.memory-stats")?;
    full.shared_peak_bytes = full.shared_peak_bytes.max(memory.shared_bytes);
    meanwhile(vm, &traffic, full)?;
    drop(load);
    Ok(VmFigures { memory, time_to_init_ms: 0, vmm_rss_bytes, search })
}

/// What a script of the guest says: words of the form key=value.
pub struct Answer<'a>(HashMap<&'a str, &'a str>);

impl<'a> Answer<'a> {
    /// Reads it.
    pub fn read(text: &'a str) -> Self {
        Self(text.split_whitespace().filter_map(|word| word.split_once('=')).collect())
    }

    /// The value of a key.
    pub fn text(&self, key: &str) -> Result<&'a str> {
        self.0.get(key).copied().with_context(|| format!("the guest did not say its {key}"))
    }

    /// The same, a number.
    pub fn number(&self, key: &str) -> Result<u64> {
        self.text(key)?.parse().with_context(|| format!("the guest's {key} is no number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_keys_and_values() {
        let answer = Answer::read("sha256=ab12 write_ms=120\nnoise read_ms=x\n");
        assert_eq!(answer.text("sha256").unwrap(), "ab12");
        assert_eq!(answer.number("write_ms").unwrap(), 120);
        assert!(answer.number("read_ms").is_err() && answer.text("other").is_err());
    }

    #[test]
    fn the_shell_accepts_the_scripts() {
        for script in [
            include_str!("guest/disk.sh"),
            include_str!("guest/hot_disk.sh"),
            include_str!("guest/network.sh"),
            include_str!("guest/canary.sh"),
            include_str!("guest/busy.sh"),
        ] {
            assert!(std::process::Command::new("bash").args(["-n", "-c", script]).status().unwrap().success());
        }
    }

    /// What the guest does is done here, where there is a bash as well.
    fn run(script: &str, arguments: &[&str]) -> String {
        let output = std::process::Command::new("bash").args(["-c", script, "guest"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_network_script_speaks_with_the_peer() {
        let peer = Peer::listen("127.0.0.1").unwrap();
        let port = peer.port().unwrap();
        let host = peer.exchange(2 << 20);
        let said = run(include_str!("guest/network.sh"), &["127.0.0.1", &port, "2"]);
        let (host, guest) = (host.join().unwrap().unwrap(), Answer::read(&said));
        assert_eq!((guest.text("received").unwrap(), guest.text("sent").unwrap()), (&*host.sent, &*host.received));
    }
}
