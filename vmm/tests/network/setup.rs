//! Interfaces as the operator wants them, and such as can't be had.

use std::net::{Ipv4Addr, UdpSocket};

use virtio_bindings::virtio_net::*;
use vmm::config::NetConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::net::Net;

use crate::guest::config as read;
use crate::packet::PacketSocket;
use crate::world::{Test, config};

pub const TESTS: &[Test] = &[
    ("an_interface_is_made_and_goes", an_interface_is_made_and_goes),
    ("what_can_t_be_had_is_refused", what_cant_be_had_is_refused),
    ("what_the_driver_is_told", what_the_driver_is_told),
];

fn names() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|line| Some(line.split(':').next()?.trim().to_owned())).collect()
}

fn an_interface_is_made_and_goes() {
    assert_eq!(names(), ["lo"]);
    let first = Net::new(&NetConfig { tap: None, ..config() }).unwrap();
    let second = Net::new(&NetConfig { tap: None, queue_pairs: 3, ..config() }).unwrap();
    assert_ne!(first.interface(), second.interface());
    let mut expected = vec!["lo", first.interface(), second.interface()];
    let mut present = names();
    (expected.sort(), present.sort());
    assert_eq!(present, expected);
    PacketSocket::on(first.interface());
    drop((first, second));
    assert_eq!(names(), ["lo"]);
    let address = Ipv4Addr::new(10, 1, 2, 3);
    let with_address = NetConfig { host_address: Some((address, Ipv4Addr::new(255, 255, 0, 0))), ..config() };
    let _device = Net::new(&with_address).unwrap();
    UdpSocket::bind((address, 0)).unwrap();
    // Somebody else's, with several queues, of which one is wanted; it stays.
    let made =
        |arguments: &[&str]| assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
    made(&["tuntap", "add", "mode", "tap", "name", "theirs", "multi_queue"]);
    drop(Net::new(&NetConfig { tap: Some("theirs".into()), ..config() }).unwrap());
    assert!(names().contains(&"theirs".to_owned()));
}

fn what_cant_be_had_is_refused() {
    let _first = Net::new(&config()).unwrap();
    let tap = |name: &str| NetConfig { tap: Some(name.into()), ..config() };
    let cases = [
        (config(), "in use"),
        (tap("lo"), "must be a tap"),
        (tap(""), "1 to 15 bytes"),
        (tap("a-name-of-16-byte"), "1 to 15 bytes"),
        (tap("a/b"), "no slash"),
        (tap("a\0b"), "1 to 15 bytes"),
        (NetConfig { queue_pairs: 0, ..tap("other") }, "pairs of queues"),
        (NetConfig { queue_size: 48, ..tap("other") }, "power of two"),
        (NetConfig { mtu: Some(60), ..tap("other") }, "at least 68"),
        (NetConfig { mac: Some([1, 2, 3, 4, 5, 6]), ..tap("other") }, "hardware address"),
    ];
    for (config, expected) in cases {
        let error = Net::new(&config).err().unwrap_or_else(|| panic!("{config:?} is taken")).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut present = names();
    present.sort();
    assert_eq!(present, ["lo", "wire"]);
}

fn what_the_driver_is_told() {
    let device = Net::new(&NetConfig { mtu: Some(1400), queue_pairs: 2, ..config() }).unwrap();
    assert_eq!(device.device_type(), 1);
    assert_eq!(read(&device, 0, 14), [2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0x78, 5, 0, 0]);
    let has = |device: &Net, bit: u32| device.features() >> bit & 1 == 1;
    assert!(
        [VIRTIO_NET_F_MQ, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO]
            .iter()
            .all(|bit| has(&device, *bit))
    );
    drop(device);
    // Segments need checksums.
    let without = Net::new(&NetConfig { checksum_offload: false, mac: None, ..config() }).unwrap();
    let segments =
        [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU];
    assert!(!segments.iter().any(|bit| has(&without, *bit)));
    let made_up = without.mac();
    assert_eq!((made_up[0] & 3, made_up), (2, <[u8; 6]>::try_from(read(&without, 0, 6)).unwrap()));
    drop(without);
    assert_ne!(Net::new(&NetConfig { mac: None, ..config() }).unwrap().mac(), made_up);
}
