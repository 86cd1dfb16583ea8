//! The part of `lab bench io` that runs inside: how fast the guest's disk and network are, with each isolation.
//!
//! The Debian system of the full demonstration is booted with `isolation=none` and with `isolation=software`. In each, a
//! script times transfers; the times are left in a file, for the package bench to judge.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use super::full::machine::Vm;
use super::full::network::{self, HOST};
use super::full::peer::Peer;
use super::full::{self, STEP, steer, step};
use super::guest::{Isolation, new_seed};

/// The file in which the times are left, in the output folder.
pub const TIMES: &str = "io-times.json";
/// How much is transferred at a time.
const MIB: u64 = 64;
/// Where the guest's script has its file.
const FILE: &str = "/var/tmp/io";

/// Times by kind of transfer, in nanoseconds.
type Times = BTreeMap<String, Vec<u64>>;

#[derive(Debug, Serialize)]
struct Record {
    bytes: u64,
    none: Times,
    software: Times,
}

/// Options of `lab inside io`.
#[derive(Debug, clap::Args)]
#[group(id = "io")]
pub struct Args {
    #[command(flatten)]
    system: full::Args,
    /// How often each transfer is made
    #[arg(long)]
    rounds: u32,
}

/// Measures both.
pub fn run(args: &Args) -> Result<ExitCode> {
    network::enter()?;
    let Args { system: args, rounds } = args;
    let rounds = u64::from(*rounds);
    let record = Record {
        bytes: MIB << 20,
        none: measure(args, Isolation::None, rounds)?,
        software: measure(args, Isolation::Software, rounds)?,
    };
    let path = args.plan.folder.join(TIMES);
    std::fs::write(&path, serde_json::to_vec(&record)?).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &full::Args, isolation: Isolation, rounds: u64) -> Result<Times> {
    eprintln!("lab: booting {} with isolation={} ...", args.system_name, isolation.name());
    let mut vm = Vm::start(args, isolation, 2, new_seed()?)?;
    let result = transfer(&mut vm, rounds).and_then(|times| steer::power_off(&mut vm).map(|_| times));
    result.map_err(|error| {
        anyhow!("with isolation={}, {error:#}{}", isolation.name(), vm.last_words(args.plan.show_console))
    })
}

fn transfer(vm: &mut Vm<'_>, rounds: u64) -> Result<Times> {
    vm.log_in()?;
    let peer = Peer::listen(HOST)?;
    let port = peer.port()?;
    let host = peer.serve(MIB << 20, rounds);
    let (mib, number) = (MIB.to_string(), rounds.to_string());
    let said = step("timed transfers", || {
        vm.ssh.run(include_str!("full/guest/io.sh"), &[FILE, HOST, &port, &mib, &number], STEP * 2)
    })?;
    host.join().map_err(|_| anyhow!("the host's end of the connection failed"))??;
    let times = read(&said)?;
    ensure!(times.values().all(|times| times.len() as u64 == rounds), "the guest did not tell all times");
    Ok(times)
}

/// Reads what the script says.
fn read(said: &str) -> Result<Times> {
    let mut times = Times::new();
    for word in said.split_whitespace() {
        let (kind, time) = word.split_once('=').with_context(|| format!("the guest said {word:?}"))?;
        let time = time.parse().with_context(|| format!("the guest said {word:?}"))?;
        times.entry(kind.to_owned()).or_default().push(time);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_collected_by_kind() {
        let times = read("copy=5\ndisk_read=7\ncopy=6\n").unwrap();
        assert_eq!(times["copy"], [5, 6]);
        assert_eq!(times["disk_read"], [7]);
        assert!(read("copy").is_err() && read("copy=x").is_err());
    }

    #[test]
    fn the_script_speaks_with_the_peer_and_times_each_kind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("io");
        let peer = Peer::listen("127.0.0.1").unwrap();
        let port = peer.port().unwrap();
        let host = peer.serve(1 << 20, 2);
        // Not every file system of a machine that runs tests knows direct transfers.
        let script = include_str!("full/guest/io.sh").replace("oflag=direct", "").replace("iflag=direct", "");
        let arguments = [file.to_str().unwrap(), "127.0.0.1", &port, "1", "2"];
        let output =
            std::process::Command::new("bash").args(["-c", &script, "guest"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        host.join().unwrap().unwrap();
        let times = read(&String::from_utf8(output.stdout).unwrap()).unwrap();
        let kinds: Vec<&str> = times.keys().map(String::as_str).collect();
        assert_eq!(kinds, ["copy", "disk_read", "disk_write", "network_in", "network_out"]);
        assert!(times.values().all(|times| times.len() == 2));
    }
}
