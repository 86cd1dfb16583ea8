//! A socket device that is added to a guest that runs, carries connections of either side's, and goes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::expect;
use kvm_tests::linux::exchange::{BYTES, Sums, exchange, wait_for_connection};
use kvm_tests::linux::machine::{Boot, Linux, wait_until};
use vmm::config::VsockConfig;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_gains_sockets_and_loses_them", || sockets(Isolation::Software)),
    ("an_ordinary_guest_gains_sockets_and_loses_them", || sockets(Isolation::None)),
];

/// The program by which the guest uses such sockets.
const PROGRAM: &str = env!("CARGO_BIN_EXE_guest-socket");
const MODULES: [&str; 3] = ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];

/// Ports of the host: one that it listens on, one that it doesn't, and one for a connection that stays.
const LISTENS: u32 = 5000;
const SILENT: u32 = 5001;
const HELD: u32 = 5002;
/// Ports of the guest: one that it listens on, and one that it doesn't.
const GUEST_LISTENS: u32 = 6000;
const GUEST_SILENT: u32 = 6001;

/// The device is there a moment before its driver has made it ready, so the first connections are tried until there is one.
fn script() -> String {
    format!(
        r#"
device=/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio0
sums() {{ say $(for file in /received /sent; do sha256sum $file | cut -d' ' -f1; done); }}
say without $(guest-socket connect 2 {LISTENS} 2>&1)
until [ -e $device ]; do sleep 0.1; done
say found
dd if=/dev/urandom of=/sent bs=1024 count={kib} 2>/dev/null
until guest-socket connect 2 {LISTENS} </sent >/received; do sleep 0.1; done
sums
say refused $(guest-socket connect 2 {SILENT} 2>&1)
guest-socket listen {GUEST_LISTENS} </sent >/received || say cannot listen
sums
mkfifo /open
guest-socket connect 2 {HELD} </open 2>/error &
exec 3>/open
while [ -e $device ]; do sleep 0.1; done
wait
say cut $(cat /error)
say without $(guest-socket connect 2 {LISTENS} 2>&1)
until guest-socket connect 2 {LISTENS} </sent >/received; do sleep 0.1; done
sums
"#,
        kib = BYTES >> 10,
    )
}

fn sockets(isolation: Isolation) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let listen = |port: u32| UnixListener::bind(folder.path().join(format!("socket_{port}")));
    let (listens, held) = (listen(LISTENS)?, listen(HELD)?);
    let script = script();
    let boot = Boot { isolation, modules: &MODULES, script: &script };
    let mut guest = Linux::boot_with(&boot, &[Path::new(PROGRAM)], |_| {})?;
    guest.expect("without No such device (os error 19)")?;
    let config = VsockConfig { id: None, cid: 5, socket: socket.clone() };
    let devices = guest.handle().devices().clone();
    let added = devices.add_vsock(config.clone())?;
    expect::equal("its name", added.id.as_str(), "_vsock0")?;
    guest.expect("found")?;

    // From the guest to the host.
    let connection = accept(&mut guest, &listens)?;
    agree(&mut guest, exchange(connection)?)?;
    guest.expect("refused Connection reset by peer (os error 104)")?;
    // And from the host to the guest.
    guest.expect("listens")?;
    ensure!(call(&socket, GUEST_SILENT)?.is_none(), "the guest takes a connection to a port on which nobody listens");
    let connection = call(&socket, GUEST_LISTENS)?.context("the guest refuses a connection")?;
    agree(&mut guest, exchange(connection)?)?;

    let mut held = accept(&mut guest, &held)?;
    let counters = || devices.counters().remove("_vsock0").context("it counts nothing");
    // The host's side of a connection is there a moment before it is counted.
    wait_until("the last connection is not counted", || Ok(counters()?["connections"] == 3))?;
    let counted = counters()?;
    let bytes = 2 * BYTES as u64;
    expect::equal("bytes", (counted["rx_bytes"], counted["tx_bytes"]), (bytes, bytes))?;
    expect::equal("connections that were refused", counted["rejected"], 2)?;
    ensure!(counted["failed"] == 0 && counted["refused"] == 0 && counted["queue_faults"] == 0, "{counted:?}");

    devices.remove(&added.id)?;
    guest.expect("cut Connection reset by peer (os error 104)")?;
    guest.expect("without No such device (os error 19)")?;
    guest.lets_go(&added.id)?;
    expect::equal("what comes over a connection of a device that is gone", held.read(&mut [0])?, 0)?;
    ensure!(!socket.exists(), "the socket is left");
    expect::equal("its place", devices.add_vsock(config)?.bdf, added.bdf)?;
    let connection = accept(&mut guest, &listens)?;
    agree(&mut guest, exchange(connection)?)?;
    guest.powers_off()
}

fn accept(guest: &mut Linux, listener: &UnixListener) -> anyhow::Result<UnixStream> {
    wait_for_connection(listener).with_context(|| guest.console())?;
    Ok(listener.accept()?.0)
}

/// Calls a port of the guest's; `None` if it is refused.
fn call(socket: &Path, port: u32) -> anyhow::Result<Option<UnixStream>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // No byte more than that line: the rest is the guest's.
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n") {
        if stream.read(&mut byte)? == 0 {
            ensure!(answer.is_empty(), "the answer breaks off: {answer:?}");
            return Ok(None);
        }
        answer.push(byte[0]);
    }
    ensure!(answer.starts_with(b"OK "), "the answer is {:?}", String::from_utf8_lossy(&answer));
    Ok(Some(stream))
}

/// The guest has what the host sent, and sent what the host has.
fn agree(guest: &mut Linux, sums: Sums) -> anyhow::Result<()> {
    guest.expect(&format!("{} {}", sums.sent, sums.received))
}
