//! Sockets between guest and host, with the guest's side made here packet by packet.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use vmm::config::VsockConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::vsock::Vsock;
use vmm::devices::virtio::vsock::connection::BUFFER;
use vmm::devices::virtio::vsock::packet::{HEADER, HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};

use crate::driver::Queue;
use crate::guest::{Guest, config, counter, resources, wait_until};

pub const CID: u64 = 42;

/// Bytes of a buffer for packets.
const SIZE: u32 = 4096;

pub struct World {
    pub guest: Guest,
    pub receive: Queue,
    pub transmit: Queue,
    pub device: Vsock,
    pub directory: tempfile::TempDir,
    posted: std::cell::RefCell<VecDeque<u64>>,
    page: u64,
}

impl World {
    pub fn new() -> Self {
        Self::with(Guest::new())
    }

    pub fn with(guest: Guest) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut device = Vsock::new(&vsock(directory.path().join("socket"))).unwrap();
        let (receive, transmit, events) = (guest.queue(0, 256), guest.queue(1, 256), guest.queue(2, 16));
        device.activate(guest.activation(0, &[&receive, &transmit, &events])).unwrap();
        let page = guest.pages(64);
        Self { guest, receive, transmit, device, directory, posted: Default::default(), page }
    }

    /// With buffers for what comes.
    pub fn ready() -> Self {
        let world = Self::new();
        (0..32).for_each(|_| world.post(world.guest.pages(1)));
        world
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub fn post(&self, page: u64) {
        self.receive.offer(&self.guest, &[(page, SIZE, true)]);
        self.posted.borrow_mut().push_back(page);
        self.receive.notify();
    }

    /// A header of the guest's.
    pub fn header(&self, ports: (u32, u32), op: u16) -> Header {
        let (src_port, dst_port) = ports;
        let (src_cid, dst_cid) = (CID, HOST_CID);
        Header { src_cid, dst_cid, src_port, dst_port, kind: STREAM, op, buf_alloc: 1 << 20, ..Header::default() }
    }

    /// The guest sends a packet, its data in two buffers.
    pub fn send(&self, header: Header, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..header };
        self.guest.write(self.page, &[header.to_bytes().as_slice(), data].concat());
        let half = data.len() as u32 / 2;
        let mut buffers = vec![(self.page, HEADER as u32, false)];
        if half > 0 {
            buffers.push((self.page + HEADER as u64, half, false));
        }
        if !data.is_empty() {
            buffers.push((self.page + HEADER as u64 + u64::from(half), data.len() as u32 - half, false));
        }
        self.transmit.request(&self.guest, &buffers);
    }

    /// Waits for a packet for the guest.
    #[track_caller]
    pub fn next(&self) -> (Header, Vec<u8>) {
        let (_, written) = self.receive.wait(&self.guest);
        let page = self.posted.borrow_mut().pop_front().unwrap();
        let bytes = self.guest.read(page, written as usize);
        self.post(page);
        let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, STREAM));
        assert_eq!(header.len as usize, bytes.len() - HEADER);
        (header, bytes[HEADER..].to_vec())
    }

    /// The next one, which is for this.
    #[track_caller]
    pub fn expect(&self, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.next();
        assert_eq!(header.op, op, "{header:?}");
        (header, data)
    }

    /// A program of the host's connects to a port of the guest's, which accepts. Returns the guest's and the host's port.
    #[track_caller]
    pub fn connect(&self, port: u32) -> (UnixStream, (u32, u32)) {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let (request, _) = self.expect(op::REQUEST);
        assert_eq!((request.dst_port, request.buf_alloc), (port, BUFFER));
        let ports = (port, request.src_port);
        self.send(self.header(ports, op::RESPONSE), &[]);
        let mut line = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port));
        (stream, ports)
    }

    /// Data for the guest, so many bytes.
    #[track_caller]
    pub fn receive_data(&self, size: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < size {
            all.extend(self.expect(op::DATA).1);
        }
        all
    }
}

fn vsock(socket: PathBuf) -> VsockConfig {
    VsockConfig { id: Some("vsock9".into()), cid: CID as u32, socket }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

#[test]
fn programs_of_the_host_reach_ports_of_the_guest() {
    let world = World::ready();
    assert_eq!((world.device.device_type(), world.device.queue_sizes().len()), (19, 3));
    assert_eq!(config(&world.device, 0, 8), CID.to_le_bytes());
    let (mut first, ports) = world.connect(1234);
    let (mut second, others) = world.connect(1234);
    assert_ne!(ports, others);
    first.write_all(&bytes(10000)).unwrap();
    assert_eq!(world.receive_data(10000), bytes(10000));
    second.write_all(b"second").unwrap();
    let (header, data) = world.expect(op::DATA);
    assert_eq!(((header.dst_port, header.src_port), data), (others, b"second".to_vec()));
    world.send(world.header(ports, op::DATA), &bytes(3001));
    let mut read = vec![0; 3001];
    first.read_exact(&mut read).unwrap();
    assert_eq!(read, bytes(3001));
    // The guest ends one, the host the other.
    world.send(Header { flags: NO_RECEIVE | NO_SEND, ..world.header(ports, op::SHUTDOWN) }, &[]);
    let (header, _) = world.expect(op::RESET);
    assert_eq!((header.dst_port, header.src_port), ports);
    assert_eq!(first.read(&mut read).unwrap(), 0);
    drop(second);
    assert_eq!(world.expect(op::SHUTDOWN).0.flags, NO_RECEIVE | NO_SEND);
    world.send(world.header(others, op::RESET), &[]);
    let names = ["connections", "rx_bytes", "tx_bytes", "failed"];
    wait_until(|| names.map(|name| counter(&world.device, name)) == [2, 10006, 3001, 0]);
}

#[test]
fn the_guest_reaches_programs_of_the_host() {
    let world = World::ready();
    let listener = UnixListener::bind(world.directory.path().join("socket_77")).unwrap();
    world.send(world.header((5000, 78), op::REQUEST), &[]);
    let (header, _) = world.expect(op::RESET);
    assert_eq!((header.dst_port, header.src_port), (5000, 78));
    let ports = (5000, 77);
    world.send(world.header(ports, op::REQUEST), &[]);
    world.expect(op::RESPONSE);
    let (mut stream, _) = listener.accept().unwrap();
    world.send(world.header(ports, op::DATA), b"from the guest");
    let mut read = [0; 14];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"from the guest");
    // Half of it ends; the other half goes on.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(world.expect(op::SHUTDOWN).0.flags, NO_SEND);
    world.send(world.header(ports, op::DATA), b"still");
    stream.read_exact(&mut read[..5]).unwrap();
    world.send(Header { flags: NO_SEND, ..world.header(ports, op::SHUTDOWN) }, &[]);
    assert_eq!(stream.read(&mut read).unwrap(), 0);
    // The program has gone: the guest is told as soon as it matters.
    world.send(world.header((5001, 77), op::REQUEST), &[]);
    world.expect(op::RESPONSE);
    drop(listener.accept().unwrap());
    assert_eq!(world.expect(op::SHUTDOWN).0.flags, NO_SEND | NO_RECEIVE);
    world.send(world.header((5001, 77), op::DATA), b"to nobody");
    world.expect(op::RESET);
    assert_eq!((counter(&world.device, "rejected"), counter(&world.device, "failed")), (1, 0));
}

#[test]
fn a_program_that_does_not_read_slows_down_its_own_connection() {
    let world = World::ready();
    let (mut slow, ports) = world.connect(1);
    let (mut other, others) = world.connect(2);
    let mut sent = 0u32;
    let data = bytes(32 << 10);
    // As much as there is room for.
    let taken = loop {
        world.send(Header { ..world.header(ports, op::CREDIT_REQUEST) }, &[]);
        let (header, _) = world.expect(op::CREDIT_UPDATE);
        if sent.wrapping_sub(header.fwd_cnt) + data.len() as u32 > header.buf_alloc {
            break header.fwd_cnt;
        }
        world.send(world.header(ports, op::DATA), &data);
        sent += data.len() as u32;
        // What the socket takes, the guest may be told of.
        while world.receive.pending(&world.guest) > 0 {
            world.expect(op::CREDIT_UPDATE);
        }
    };
    assert!(sent - taken > BUFFER - 64 * 1024 && sent - taken <= BUFFER, "{sent} {taken}");
    world.send(world.header(others, op::DATA), b"other");
    let mut read = vec![0; 5];
    other.read_exact(&mut read).unwrap();
    // Once it reads, all is there, and the guest is told.
    let mut all = vec![0; sent as usize];
    slow.read_exact(&mut all).unwrap();
    assert!(all.chunks(data.len()).all(|chunk| chunk == data));
    let (header, _) = world.expect(op::CREDIT_UPDATE);
    assert!(header.fwd_cnt > taken);
}

#[test]
fn a_guest_that_takes_no_more_is_sent_no_more() {
    let world = World::ready();
    let mut stream = UnixStream::connect(world.path()).unwrap();
    stream.write_all(b"CONNECT 9\n").unwrap();
    let (request, _) = world.expect(op::REQUEST);
    let ports = (9, request.src_port);
    world.send(Header { buf_alloc: 10, ..world.header(ports, op::RESPONSE) }, &[]);
    stream.write_all(b"0123456789abcdefghij").unwrap();
    assert_eq!(world.expect(op::DATA).1, b"0123456789");
    world.expect(op::CREDIT_REQUEST);
    world.send(Header { buf_alloc: 10, fwd_cnt: 3, ..world.header(ports, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(world.expect(op::DATA).1, b"abc");
    world.expect(op::CREDIT_REQUEST);
    world.send(Header { buf_alloc: 30, fwd_cnt: 13, ..world.header(ports, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(world.expect(op::DATA).1, b"defghij");
    // Nothing more comes of a guest that says it took what it never got.
    stream.write_all(b"more").unwrap();
    assert_eq!(world.expect(op::DATA).1, b"more");
    world.send(Header { fwd_cnt: 1000, ..world.header(ports, op::CREDIT_UPDATE) }, &[]);
    stream.write_all(b"nothing").unwrap();
    world.expect(op::CREDIT_REQUEST);
}

#[test]
fn a_request_that_makes_no_sense_ends_its_connection() {
    let world = World::ready();
    for line in [
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "HELLO 1\n",
        "\n",
        "CONNECT 1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ] {
        let mut stream = UnixStream::connect(world.path()).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut all = Vec::new();
        // The end, or a reset where not all was read.
        let _ = stream.read_to_end(&mut all);
        assert!(all.is_empty(), "{line:?}");
    }
    // One that the guest refuses.
    let mut stream = UnixStream::connect(world.path()).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    let (request, _) = world.expect(op::REQUEST);
    world.send(world.header((5, request.src_port), op::RESET), &[]);
    assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
    // One whose program goes before the guest has answered.
    let mut stream = UnixStream::connect(world.path()).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    let (request, _) = world.expect(op::REQUEST);
    drop(stream);
    let (reset, _) = world.expect(op::RESET);
    assert_eq!((reset.src_port, reset.dst_port), (request.src_port, 5));
    world.connect(6);
}

#[test]
fn the_socket_belongs_to_whoever_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let device = Vsock::new(&vsock(path.clone())).unwrap();
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = Vsock::new(&vsock(path.clone())).err().unwrap().to_string();
    assert!(error.contains("somebody listens"), "{error}");
    assert!(path.exists());
    drop(device);
    assert!(!path.exists(), "the socket is left behind");
    // What a process left behind is replaced.
    drop(UnixListener::bind(&path).unwrap());
    let device = Vsock::new(&vsock(path.clone())).unwrap();
    // Somebody else has put another one there meanwhile: it stays.
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(device);
    assert!(path.exists());
    // Somebody who takes no connections listens all the same, and nobody waits for that.
    let full = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    let crowded = directory.path().join("crowded");
    rustix::net::bind(&full, &rustix::net::SocketAddrUnix::new(&crowded).unwrap()).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _first = UnixStream::connect(&crowded).unwrap();
    let error = Vsock::new(&vsock(crowded)).err().unwrap().to_string();
    assert!(error.contains("somebody listens"), "{error}");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    let error = Vsock::new(&vsock(path.clone())).err().unwrap().to_string();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    for (config, expected) in [
        (vsock(directory.path().join("x".repeat(100))), "too long"),
        (vsock(directory.path().join("missing/socket")), "cannot create socket"),
        (VsockConfig { cid: 2, ..vsock(directory.path().join("other")) }, "at least 3"),
    ] {
        let error = Vsock::new(&config).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_paused_device_stands_still_and_loses_nothing() {
    let mut world = World::ready();
    let (mut stream, ports) = world.connect(1);
    for n in 0..20u8 {
        world.device.pause();
        stream.write_all(&[n; 100]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(world.receive.pending(&world.guest), 0);
        world.device.resume();
        assert_eq!(world.receive_data(100), [n; 100]);
        world.send(world.header(ports, op::DATA), &[n; 50]);
        let mut read = [0; 50];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(read, [n; 50]);
    }
}

#[test]
fn a_reset_ends_all_connections() {
    let mut world = World::ready();
    for round in 0..10 {
        let (mut stream, _) = world.connect(round);
        stream.write_all(&bytes(1000)).unwrap();
        world.device.deactivate();
        wait_until(|| resources("vsock9").1 == 0 || round > 0);
        // The end, or a reset where not all was read.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
        world.receive.reset(&world.guest);
        world.transmit.reset(&world.guest);
        let pages: Vec<u64> = world.posted.borrow_mut().drain(..).collect();
        world.device.activate(world.guest.activation(0, &[&world.receive, &world.transmit])).unwrap();
        pages.into_iter().for_each(|page| world.post(page));
    }
    world.connect(99);
}
