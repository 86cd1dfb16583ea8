//! Packets that no decent driver sends: each costs its connection at most.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, mpsc};

use hypervisor::PageState::Private;
use proptest::prelude::*;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::vsock::connection::BUFFER;
use vmm::devices::virtio::vsock::packet::{HEADER, Header, op};

use vmm::memory::event::MemoryEvent;

use crate::guest::{Guest, counter, wait_until};
use crate::vsock::{CID, World};

#[test]
fn private_buffers_cost_their_connection_at_most() {
    let world = World::new();
    let private = world.guest.pages(1);
    world.post(private);
    world.guest.convert(private, 1, Private);
    (0..8).for_each(|_| world.post(world.guest.pages(1)));
    // It comes back empty once there is something for it.
    let mut stream = std::os::unix::net::UnixStream::connect(world.path()).unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    assert_eq!(world.receive.wait(&world.guest).1, 0);
    wait_until(|| world.receive.pending(&world.guest) == 1);
    assert_eq!(world.receive.poll(&world.guest).unwrap().1, HEADER as u32);
    assert_eq!((counter(&world.device, "failed"), counter(&world.device, "refused")), (1, 1));

    let world = World::ready();
    let (mut stream, ports) = world.connect(7);
    let (private, shared) = (world.guest.pages(1), world.guest.pages(1));
    world.guest.convert(private, 1, Private);
    world.transmit.request(&world.guest, &[(private, HEADER as u32, false)]);
    let header = Header { len: 100, ..world.header(ports, op::DATA) };
    world.guest.write(shared, &header.to_bytes());
    world.transmit.request(&world.guest, &[(shared, HEADER as u32, false), (private, 100, false)]);
    world.expect(op::RESET);
    assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!((counter(&world.device, "failed"), counter(&world.device, "refused")), (2, 2));
    world.connect(8);
}

#[test]
fn packets_that_make_no_sense_are_answered_or_ignored() {
    let world = World::ready();
    let (_stream, ports) = world.connect(7);
    let stranger = (1, 2);
    let cases = [
        (Header { src_cid: CID + 1, ..world.header(ports, op::DATA) }, None),
        (Header { dst_cid: 3, ..world.header(ports, op::DATA) }, None),
        (Header { kind: 2, ..world.header(stranger, op::REQUEST) }, Some(op::RESET)),
        (world.header(stranger, op::DATA), Some(op::RESET)),
        (world.header(stranger, 99), Some(op::RESET)),
        (world.header(stranger, op::RESPONSE), Some(op::RESET)),
    ];
    for (number, (header, answer)) in (1..).zip(cases) {
        world.send(header, b"data");
        if let Some(answer) = answer {
            let (answered, _) = world.expect(answer);
            assert_eq!((answered.dst_port, answered.src_port), stranger);
        }
        assert_eq!(counter(&world.device, "failed"), number);
    }
    // No header, and more data than there is.
    let page = world.guest.pages(1);
    world.transmit.request(&world.guest, &[(page, HEADER as u32 - 1, false)]);
    world.guest.write(page, &Header { len: 101, ..world.header(ports, op::DATA) }.to_bytes());
    world.transmit.request(&world.guest, &[(page, HEADER as u32 + 100, false)]);
    world.expect(op::RESET);
    // A second request for a connection that stands.
    let (_stream, ports) = world.connect(8);
    world.send(world.header(ports, op::REQUEST), &[]);
    world.expect(op::RESET);
    world.connect(9);
}

#[test]
fn more_data_than_there_is_room_for_ends_the_connection() {
    let world = World::ready();
    let (mut stream, ports) = world.connect(7);
    let data = vec![1; 128 << 10];
    let mut sent = 0;
    // Without a look at what it is told.
    while counter(&world.device, "failed") == 0 {
        world.send(world.header(ports, op::DATA), &data);
        sent += data.len();
        assert!(sent < 16 << 20, "it holds whatever it gets");
    }
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert!(all.len() <= sent - data.len() && all.len() + BUFFER as usize >= sent - data.len());
}

#[test]
fn a_device_that_is_called_away_takes_no_other_packet() {
    let (refused, was_refused) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    // It holds up the device's thread at the first packet, whose header it may not touch.
    let thread = Mutex::new((refused, goes_on));
    let mut world = World::with(Guest::observed(Arc::new(move |event: &MemoryEvent<'_>| {
        if let MemoryEvent::AccessRefused(_) = event {
            let (refused, goes_on) = &*thread.lock().unwrap();
            refused.send(()).unwrap();
            goes_on.recv().unwrap();
        }
    })));
    let (private, shared) = (world.guest.pages(1), world.guest.pages(1));
    world.guest.convert(private, 1, Private);
    world.guest.write(shared, &world.header((1, 2), op::CREDIT_UPDATE).to_bytes());
    world.transmit.offer(&world.guest, &[(private, HEADER as u32, false)]);
    (0..9).for_each(|_| _ = world.transmit.offer(&world.guest, &[(shared, HEADER as u32, false)]));
    world.transmit.notify();
    was_refused.recv().unwrap();
    world.device.workers().ask_to_pause();
    go_on.send(()).unwrap();
    world.device.pause();
    assert_eq!(world.transmit.pending(&world.guest), 1);
    world.device.resume();
    wait_until(|| world.transmit.pending(&world.guest) == 10);
    assert_eq!(counter(&world.device, "failed"), 1);
}

#[test]
fn answers_to_a_guest_that_takes_none_are_bounded() {
    let world = World::new();
    let page = world.guest.pages(1);
    world.guest.write(page, &world.header((1, 2), op::DATA).to_bytes());
    // Twice as many as may wait, as fast as they are used.
    let (mut offered, mut used) = (0, 0);
    let send = |offered: &mut u32| {
        world.transmit.offer(&world.guest, &[(page, HEADER as u32, false)]);
        *offered += 1;
        world.transmit.notify();
    };
    (0..256).for_each(|_| send(&mut offered));
    wait_until(|| world.transmit.pending(&world.guest) == 256);
    while world.transmit.poll(&world.guest).is_some() {
        used += 1;
    }
    (0..200).for_each(|_| send(&mut offered));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!((used, world.transmit.pending(&world.guest)), (256, 0), "packets are taken without end");
    // With buffers for them, they are.
    (0..32).for_each(|_| world.post(world.guest.pages(1)));
    for _ in 0..offered {
        world.expect(op::RESET);
    }
    wait_until(|| world.transmit.pending(&world.guest) == 200);
    while world.transmit.poll(&world.guest).is_some() {}
    world.connect(5);
}

#[test]
fn connections_are_bounded() {
    let world = World::ready();
    let listener = UnixListener::bind(world.directory.path().join("socket_1")).unwrap();
    let mut kept = Vec::new();
    for port in 0..256 {
        world.send(world.header((port, 1), op::REQUEST), &[]);
        world.expect(op::RESPONSE);
        kept.push(listener.accept().unwrap());
    }
    world.send(world.header((1000, 1), op::REQUEST), &[]);
    world.expect(op::RESET);
    let mut refused = std::os::unix::net::UnixStream::connect(world.path()).unwrap();
    assert_eq!(refused.read(&mut [0; 10]).unwrap(), 0);
    world.send(world.header((0, 1), op::RESET), &[]);
    world.connect(5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_sent_others_go_on(
        packets in prop::collection::vec(
            (0..9u16, 0..3u32, 0..3u32, 0..5u32, any::<u32>(), any::<u32>(), 0..300usize, 0..20u8), 1..60),
    ) {
        let world = World::ready();
        let _listener = UnixListener::bind(world.directory.path().join("socket_1")).unwrap();
        let (mut kept, ports) = world.connect(4000);
        for (op, guest, host, flags, buf_alloc, fwd_cnt, size, odd) in packets {
            let header = Header { flags, buf_alloc, fwd_cnt, ..world.header((guest, host), op) };
            let header = match odd {
                0 => Header { kind: 7, ..header },
                1 => Header { src_cid: 0, ..header },
                _ => header,
            };
            world.send(header, &vec![1; size]);
            while world.receive.pending(&world.guest) > 0 {
                world.next();
            }
        }
        world.send(world.header(ports, op::DATA), b"kept");
        let mut read = [0; 4];
        kept.read_exact(&mut read).unwrap();
        prop_assert_eq!(&read, b"kept");
    }
}
