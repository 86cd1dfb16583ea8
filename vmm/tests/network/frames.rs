//! Frames that come and go.

use std::net::{Ipv4Addr, UdpSocket};

use virtio_bindings::virtio_net::*;
use vmm::config::NetConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::net::Net;

use crate::guest::{Guest, counter, resources, wait_until};
use crate::packet::PacketSocket;
use crate::world::{HEADER, MERGEABLE, Test, World, config, frame};

pub const TESTS: &[Test] = &[
    ("frames_come_and_go", frames_come_and_go),
    ("large_frames_take_several_buffers", large_frames_take_several_buffers),
    ("frames_wait_for_buffers", frames_wait_for_buffers),
    ("frames_that_do_not_fit_are_dropped", frames_that_do_not_fit_are_dropped),
    ("checksums_may_be_left_to_the_host", checksums_may_be_left_to_the_host),
    ("several_pairs_are_used_when_the_driver_says_so", several_pairs_are_used_when_the_driver_says_so),
    ("a_paused_device_stands_still_and_loses_nothing", a_paused_device_stands_still_and_loses_nothing),
    ("a_reset_device_starts_afresh", a_reset_device_starts_afresh),
];

fn frames_come_and_go() {
    let world = World::new(MERGEABLE);
    (0..8).for_each(|_| _ = world.post(2048));
    for n in 0..8u8 {
        let sent = frame(&[n; 700]);
        world.wire.send(&sent);
        let (header, received) = world.next_frame();
        assert_eq!((received, header), (sent, [[0; 10].as_slice(), &[1, 0]].concat()));
        let sent = frame(&[n; 1400]);
        world.send(&[0; HEADER], &sent);
        assert_eq!(world.wire.receive(), sent);
    }
    let names = ["rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "rx_dropped", "tx_dropped", "failed"];
    assert_eq!(names.map(|name| counter(&world.device, name)), [8, 8 * 714, 8, 8 * 1414, 0, 0, 0]);
}

fn large_frames_take_several_buffers() {
    let world = World::with(&NetConfig { mtu: Some(9000), ..config() }, MERGEABLE);
    assert_eq!(world.device.features() >> VIRTIO_NET_F_MTU & 1, 1);
    (0..30).for_each(|_| _ = world.post(1024));
    // One by way of the device's own buffer, then such as are read in place, with small ones between.
    for (size, buffers) in [(5000, 5), (5000, 5), (8900, 9), (100, 1), (100, 1), (1012 - 14, 1), (1013 - 14, 2)] {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        world.wire.send(&frame(&content));
        let (header, received) = world.next_frame();
        assert_eq!((received, u16::from_le_bytes([header[10], header[11]])), (frame(&content), buffers), "{size}");
    }
    assert_eq!(counter(&world.device, "rx_dropped"), 0);
}

fn frames_wait_for_buffers() {
    let world = World::new(MERGEABLE);
    (0..3).for_each(|n| world.wire.send(&frame(&[n; 100])));
    for n in 0..3 {
        world.post(2048);
        assert_eq!(world.next_frame().1, frame(&[n; 100]));
    }
}

fn frames_that_do_not_fit_are_dropped() {
    let world = World::with(&NetConfig { mtu: Some(9000), ..config() }, MERGEABLE);
    (0..2).for_each(|_| _ = world.post(1024));
    world.wire.send(&frame(&[1; 4000]));
    wait_until(|| counter(&world.device, "rx_dropped") == 1);
    for n in 2..4 {
        world.wire.send(&frame(&[n; 500]));
        assert_eq!(world.next_frame().1, frame(&[n; 500]));
    }
    drop(world);
    // A driver whose frames take one buffer each.
    let world = World::with(&NetConfig { mtu: Some(9000), ..config() }, 0);
    (0..8).for_each(|_| _ = world.post(1024));
    world.wire.send(&frame(&[1; 1011]));
    world.wire.send(&frame(&[2; 500]));
    assert_eq!(world.next_frame().1, frame(&[2; 500]));
    assert_eq!(counter(&world.device, "rx_dropped"), 1);
}

/// A datagram for port 4000 of 10.9.0.1 from 10.9.0.2, with this in the place of its checksum.
fn datagram(host: [u8; 6], checksum: u16, content: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
    ip[2..4].copy_from_slice(&(28 + content.len() as u16).to_be_bytes());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let udp = [4001u16, 4000, 8 + content.len() as u16, checksum].map(u16::to_be_bytes).concat();
    [host.as_slice(), &[2, 0, 0, 0, 0, 1], &[8, 0], &ip, &udp, content].concat()
}

fn checksums_may_be_left_to_the_host() {
    let address = Ipv4Addr::new(10, 9, 0, 1);
    let with_address = NetConfig { host_address: Some((address, Ipv4Addr::new(255, 255, 255, 0))), ..config() };
    let world = World::with(&with_address, 1 << VIRTIO_NET_F_CSUM | MERGEABLE);
    let socket = UdpSocket::bind((address, 4000)).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let host = rustix_mac(world.device.interface());
    // A wrong checksum, and then the part of one that the host completes: from the datagram on, in its seventh byte.
    let mut partial = [0; HEADER];
    (partial[0], partial[6], partial[8]) = (VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, 34, 6);
    world.send(&[0; HEADER], &datagram(host, 0x1234, b"wrong"));
    world.send(&partial, &datagram(host, 0, b"right"));
    let mut bytes = [0; 100];
    let size = socket.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..size], b"right");
    // Where the guest checks nothing itself, the host has completed what comes: nothing is left to it.
    assert_eq!(counter(&world.device, "tx_dropped"), 0);
    // A header that makes no sense is the frame's own matter.
    let mut wrong = partial;
    wrong[6..10].fill(0xff);
    world.send(&wrong, &datagram(host, 0, b"far off"));
    wait_until(|| counter(&world.device, "tx_dropped") == 1);
    world.send(&partial, &datagram(host, 0, b"again"));
    assert_eq!(socket.recv(&mut bytes).unwrap(), 5);
}

/// The interface's own hardware address.
fn rustix_mac(interface: &str) -> [u8; 6] {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", interface]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let address = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let bytes: Vec<u8> = address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn several_pairs_are_used_when_the_driver_says_so() {
    let guest = Guest::new();
    let mut device = Net::new(&NetConfig { queue_pairs: 2, ..config() }).unwrap();
    let queues: Vec<_> = (0..4).map(|index| guest.queue(index, 256)).collect();
    let control = guest.queue(4, 64);
    let features = MERGEABLE | 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
    let all: Vec<_> = queues.iter().chain([&control]).collect();
    assert_eq!(device.queue_sizes(), [256, 256, 256, 256, 64]);
    device.activate(guest.activation(features | 1 << VIRTIO_NET_F_GUEST_CSUM, &all)).unwrap();
    let wire = PacketSocket::on(device.interface());
    let command = guest.pages(1);
    let say = |class: u32, number: u32, data: &[u8]| {
        guest.write(command, &[[class as u8, number as u8].as_slice(), data].concat());
        guest.write(command + 100, &[0xee]);
        let data = data.len() as u32;
        control.request(&guest, &[(command, 2, false), (command + 2, data, false), (command + 100, 1, true)]);
        guest.read(command + 100, 1)[0]
    };
    let send = |queue: usize, content: &[u8]| {
        let page = guest.pages(1);
        guest.write(page, &[[0; HEADER].as_slice(), &frame(content)].concat());
        queues[queue].request(&guest, &[(page, 12 + frame(content).len() as u32, false)]);
    };
    // Of many flows, how many come to the first pair, and how many to the second.
    let flows = PacketSocket::for_type(device.interface(), 0x800);
    let spread = || {
        for queue in [&queues[0], &queues[2]] {
            (0..64).for_each(|_| _ = queue.offer(&guest, &[(guest.pages(1), 4096, true)]));
            queue.notify();
        }
        for port in 0..64u8 {
            let mut flow = datagram([0xff; 6], 0, b"flow");
            flow[35] = port;
            flows.send(&flow);
        }
        wait_until(|| queues[0].pending(&guest) + queues[2].pending(&guest) == 64);
        let counts = [queues[0].pending(&guest), queues[2].pending(&guest)];
        for queue in [&queues[0], &queues[2]] {
            while queue.poll(&guest).is_some() {}
        }
        counts
    };
    assert_eq!(spread(), [64, 0]);
    for wrong in [0u16, 3, 0x8000] {
        assert_eq!(say(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &wrong.to_le_bytes()), 1);
    }
    assert_eq!(say(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &[2]), 1);
    assert_eq!(say(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &2u16.to_le_bytes()), 0);
    send(3, &[3; 100]);
    assert_eq!(wire.receive(), frame(&[3; 100]));
    let counts = spread();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    // Back to one: all that comes reaches the first.
    assert_eq!(say(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &1u16.to_le_bytes()), 0);
    assert_eq!(spread(), [64, 0]);
    let offloads =
        |bits: u64| say(VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, &bits.to_le_bytes());
    assert_eq!(offloads(1 << VIRTIO_NET_F_GUEST_CSUM), 0);
    // That was not agreed on.
    assert_eq!(offloads(1 << VIRTIO_NET_F_GUEST_TSO4), 1);
    assert_eq!(say(9, 9, &[]), 1);
}

fn a_paused_device_stands_still_and_loses_nothing() {
    let mut world = World::new(MERGEABLE);
    for n in 0..20 {
        world.device.pause();
        world.post(2048);
        world.wire.send(&frame(&[n; 100]));
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(world.receive.pending(&world.guest), 0);
        world.device.resume();
        assert_eq!(world.next_frame().1, frame(&[n; 100]));
    }
}

fn a_reset_device_starts_afresh() {
    let mut world = World::with(&NetConfig { id: Some("reset-net".into()), ..config() }, MERGEABLE);
    wait_until(|| resources("reset-net").1 == 1);
    let descriptors = || resources("reset-net").0;
    world.device.deactivate();
    let inactive = descriptors();
    for n in 0..20 {
        // Nobody is there to take it, and the next driver is not to.
        world.wire.send(&frame(&[0xee; 100]));
        world.receive.reset(&world.guest);
        world.posted.borrow_mut().clear();
        let queues = [&world.receive, &world.transmit];
        world.transmit.reset(&world.guest);
        world.device.activate(world.guest.activation(MERGEABLE, &queues)).unwrap();
        world.post(2048);
        world.post(2048);
        world.wire.send(&frame(&[n; 100]));
        assert_eq!(world.next_frame().1, frame(&[n; 100]));
        world.device.deactivate();
        wait_until(|| resources("reset-net").1 == 0);
        assert_eq!(descriptors(), inactive);
    }
}
