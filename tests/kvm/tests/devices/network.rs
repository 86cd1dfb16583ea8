//! A network device that is added to a guest that runs, carries what both sides send, and goes.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::expect;
use kvm_tests::linux::exchange::{BYTES, Sums, connect, exchange, wait_for_connection};
use kvm_tests::linux::machine::{Boot, Linux};
use kvm_tests::linux::namespace::in_own_network;
use vmm::config::NetConfig;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_gains_a_network_and_loses_it", || in_own_network(|| network(Isolation::Software))),
    ("an_ordinary_guest_gains_a_network_and_loses_it", || in_own_network(|| network(Isolation::None))),
];

const HOST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const GUEST: &str = "10.78.0.2";
/// Where the guest listens, and how its kernel writes that, for either protocol.
const GUEST_PORT: u16 = 4000;
const GUEST_PORT_LISTENS: &str = ":0FA0 [0:]* 0A";

fn config() -> NetConfig {
    NetConfig {
        id: None,
        tap: Some("lab0".into()),
        host_address: Some((HOST, Ipv4Addr::new(255, 255, 255, 0))),
        mac: Some([2, 0, 0, 0, 0, 0x4d]),
        mtu: Some(1400),
        queue_pairs: 1,
        queue_size: 256,
        checksum_offload: true,
        tcp_offload: true,
        udp_offload: true,
    }
}

/// What the guest does; the host listens on `port`.
fn script(port: u16) -> String {
    format!(
        r#"
say interfaces $(ls /sys/class/net)
appears() {{
    until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
    say mac $(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu)
    ip address add {GUEST}/24 dev eth0
    ip link set eth0 up
}}
sums() {{ say $(for file in /received /sent; do sha256sum $file | cut -d' ' -f1; done); }}
appears
ping -q -c 2 -w 200 {HOST} >/ping || say no answer: $(cat /ping)
dd if=/dev/urandom of=/sent bs=1024 count={kib} 2>/dev/null
nc {HOST} {port} </sent >/received || say cannot connect
sums
nc -l -p {GUEST_PORT} </sent >/received &
until grep -q '{GUEST_PORT_LISTENS}' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
say listens
wait
sums
while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
say interfaces $(ls /sys/class/net)
appears
ping -q -c 2 -w 200 {HOST} >/ping || say no answer: $(cat /ping)
say talks again
"#,
        kib = BYTES >> 10,
    )
}

fn network(isolation: Isolation) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let script = script(listener.local_addr()?.port());
    let boot = Boot { isolation, modules: &["failover", "net_failover", "virtio_net"], script: &script };
    let mut guest = Linux::boot(&boot, |_| {})?;
    guest.expect("interfaces lo")?;
    let devices = guest.handle().devices().clone();
    let added = devices.add_net(config())?;
    expect::equal("its name", added.id.as_str(), "_net0")?;
    ensure!(has_tap()?, "there is no tap");
    guest.expect("mac 02:00:00:00:00:4d mtu 1400")?;

    wait_for_connection(&listener).with_context(|| guest.console())?;
    agree(&mut guest, exchange(listener.accept()?.0)?)?;
    guest.expect("listens")?;
    agree(&mut guest, exchange(connect("the guest", || TcpStream::connect((GUEST, GUEST_PORT)))?)?)?;
    let counters = devices.counters();
    let counted = counters.get("_net0").with_context(|| format!("{counters:?} has no _net0"))?;
    let least = 2 * BYTES as u64;
    ensure!(counted["rx_bytes"] > least && counted["tx_bytes"] > least, "{counted:?}");
    ensure!(counted["failed"] == 0 && counted["refused"] == 0 && counted["queue_faults"] == 0, "{counted:?}");

    devices.remove(&added.id)?;
    guest.expect("interfaces lo")?;
    guest.lets_go(&added.id)?;
    // The interface went with it, and its slot is free.
    ensure!(!has_tap()?, "the tap is left");
    let again = devices.add_net(config())?;
    expect::equal("its place", again.bdf, added.bdf)?;
    guest.expect("mac 02:00:00:00:00:4d mtu 1400")?;
    guest.expect("talks again")?;
    guest.powers_off()
}

/// Whether the interface is there, in the network of this thread.
fn has_tap() -> anyhow::Result<bool> {
    Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?.contains("lab0:"))
}

/// The guest has what the host sent, and sent what the host has.
fn agree(guest: &mut Linux, sums: Sums) -> anyhow::Result<()> {
    guest.expect(&format!("{} {}", sums.sent, sums.received))
}
