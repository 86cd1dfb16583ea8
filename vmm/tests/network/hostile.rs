//! Buffers that no decent driver gives: they come back empty, and frames go on.

use hypervisor::PAGE_SIZE;
use hypervisor::PageState::{Private, Shared};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_net::VIRTIO_NET_F_CTRL_VQ;
use vmm::config::NetConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::net::Net;

use crate::guest::{Guest, counter, wait_until};
use crate::world::{HEADER, MERGEABLE, Test, World, config, frame};

pub const TESTS: &[Test] = &[
    ("private_buffers_come_back_empty", private_buffers_come_back_empty),
    ("commands_in_private_memory_are_refused", commands_in_private_memory_are_refused),
    ("pages_are_converted_beside_a_busy_device", pages_are_converted_beside_a_busy_device),
    ("whatever_the_chains_are_frames_go_on", whatever_the_chains_are_frames_go_on),
];

fn private_buffers_come_back_empty() {
    let world = World::with(&NetConfig { mtu: Some(9000), ..config() }, MERGEABLE);
    for n in 0..9 {
        let buffer = world.post(1024);
        if n % 3 != 1 {
            world.guest.convert(buffer, 1, Private);
        }
    }
    let heads: Vec<_> = world.posted.borrow().iter().map(|(head, ..)| *head).collect();
    // Those before the frame come back before it, those between its parts behind it, and those behind it as well.
    world.wire.send(&frame(&[7; 1500]));
    for (place, written) in [(0, 0), (1, 1024), (4, 502), (2, 0), (3, 0), (5, 0), (6, 0)] {
        assert_eq!(world.receive.wait(&world.guest), (heads[place], written));
    }
    world.wire.send(&frame(&[8; 100]));
    assert_eq!(world.receive.wait(&world.guest), (heads[7], 126));
    // Private frames of the guest's.
    let (sent, private) = (world.guest.pages(1), world.guest.pages(1));
    world.guest.convert(private, 1, Private);
    for buffers in [[(sent, 100, false), (private, 100, false)], [(private, 100, false), (sent, 100, false)]] {
        world.transmit.request(&world.guest, &buffers);
    }
    assert_eq!(counter(&world.device, "tx_dropped"), 2);
    world.send(&[0; HEADER], &frame(&[9; 100]));
    assert_eq!(world.wire.receive(), frame(&[9; 100]));
}

fn commands_in_private_memory_are_refused() {
    let guest = Guest::new();
    let mut device = Net::new(&config()).unwrap();
    let queues = [guest.queue(0, 256), guest.queue(1, 256), guest.queue(2, 64)];
    let features = MERGEABLE | 1 << VIRTIO_NET_F_CTRL_VQ;
    device.activate(guest.activation(features, &queues.iter().collect::<Vec<_>>())).unwrap();
    let (shared, private) = (guest.pages(1), guest.pages(1));
    guest.convert(private, 1, Private);
    for (command, answer, answered) in [(private, shared + 8, 1), (shared, private, 0), (shared, 1 << 45, 0)] {
        assert_eq!(queues[2].request(&guest, &[(command, 4, false), (answer, 1, true)]), answered);
    }
    assert_eq!((counter(&device, "failed"), counter(&device, "refused")), (3, 3));
    // One that there is not, all of it in shared memory.
    assert_eq!(queues[2].request(&guest, &[(shared, 4, false), (shared + 8, 1, true)]), 1);
    assert_eq!((counter(&device, "failed"), counter(&device, "refused")), (4, 3));
}

fn pages_are_converted_beside_a_busy_device() {
    let world = World::new(MERGEABLE);
    let (mut delivered, mut empty) = (0u8, 0u8);
    for n in 0..100u8 {
        let buffer = world.post(2048);
        world.wire.send(&frame(&[n; 600]));
        world.guest.convert(buffer, 1, Private);
        world.guest.convert(buffer, 1, Shared);
        match world.receive.wait(&world.guest).1 {
            0 => empty += 1,
            written => {
                assert_eq!(written as usize, HEADER + 614);
                delivered += 1;
            }
        }
    }
    assert_eq!(delivered + empty, 100);
    assert_eq!(counter(&world.device, "refused"), u64::from(empty));
}

fn whatever_the_chains_are_frames_go_on() {
    let descriptor = (0..5u64, 0..9usize, 0..8u16);
    let chains = prop::collection::vec(prop::collection::vec(descriptor, 1..6), 1..12);
    let cases = Config { cases: 24, failure_persistence: None, ..Config::default() };
    TestRunner::new(cases)
        .run(&chains, |chains| {
            let world = World::with(&NetConfig { mtu: Some(9000), ..config() }, MERGEABLE);
            let (shared, private) = (world.guest.pages(4), world.guest.pages(1));
            world.guest.convert(private, 1, Private);
            let spots = [shared, shared + PAGE_SIZE, private, u64::MAX - 8, 1 << 40];
            let lengths = [0, 1, 12, 26, 600, 1526, 4096, 70000, u32::MAX];
            for queue in [&world.receive, &world.transmit] {
                let mut next = 0;
                for chain in &chains {
                    let head = next;
                    for (place, (spot, length, flags)) in chain.iter().enumerate() {
                        let flags = if place + 1 < chain.len() { flags | 1 } else { *flags };
                        queue.write_descriptor(
                            &world.guest,
                            next,
                            (spots[*spot as usize], lengths[*length], flags, next + 1),
                        );
                        next += 1;
                    }
                    queue.make_available(&world.guest, head);
                }
                queue.notify();
            }
            // All that was to be sent comes back, whatever became of it.
            wait_until(|| usize::from(world.transmit.pending(&world.guest)) == chains.len());
            for n in 0..30 {
                world.wire.send(&frame(&[n; 3000]));
                world.wire.send(&frame(&[n; 30]));
            }
            let decent = world.guest.pages(16);
            let head = 200;
            for n in 0..16 {
                world.receive.write_descriptor(&world.guest, head + n, (decent + u64::from(n) * PAGE_SIZE, 4096, 2, 0));
                world.receive.make_available(&world.guest, head + n);
            }
            world.receive.notify();
            world.wire.send(&frame(&[0xaa; 200]));
            // The decent ones get their turn.
            wait_until(|| {
                world.wire.send(&frame(&[0xaa; 200]));
                usize::from(world.receive.pending(&world.guest)) > chains.len()
            });
            Ok(())
        })
        .unwrap();
}
