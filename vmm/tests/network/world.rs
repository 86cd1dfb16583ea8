//! A guest with a network device, in a namespace.
#![expect(unsafe_code, reason = "namespaces are entered by a system call")]

use std::collections::VecDeque;

use virtio_bindings::virtio_net::*;
use vmm::config::NetConfig;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::net::Net;

use crate::driver::Queue;
use crate::guest::{Guest, wait_until};
use crate::packet::{ETHERTYPE, PacketSocket};

/// Bytes before each frame.
pub const HEADER: usize = 12;

pub const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A test by its name.
pub type Test = (&'static str, fn());

/// Gives this thread a network of its own, with nothing that speaks unasked.
pub fn enter_namespace() -> Result<(), String> {
    // SAFETY: a flag; it concerns this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(format!("no network namespace may be made: {}", std::io::Error::last_os_error()));
    }
    std::fs::metadata("/dev/net/tun").map_err(|error| format!("no /dev/net/tun: {error}"))?;
    // There may be no such protocol.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    Ok(())
}

pub fn config() -> NetConfig {
    NetConfig {
        id: Some("net5".into()),
        tap: Some("wire".into()),
        host_address: None,
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: None,
        queue_pairs: 1,
        queue_size: 256,
        checksum_offload: true,
        tcp_offload: true,
        udp_offload: true,
    }
}

/// A frame with this in it.
pub fn frame(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend(content);
    // As short frames are padded.
    frame.resize(frame.len().max(60), 0);
    frame
}

pub struct World {
    pub guest: Guest,
    pub device: Net,
    pub receive: Queue,
    pub transmit: Queue,
    pub wire: PacketSocket,
    /// Buffers for frames that are with the device: address and size.
    pub posted: std::cell::RefCell<VecDeque<(u16, u64, u32)>>,
}

impl World {
    pub fn new(features: u64) -> Self {
        Self::with(&config(), features)
    }

    pub fn with(config: &NetConfig, features: u64) -> Self {
        let guest = Guest::new();
        let mut device = Net::new(config).unwrap();
        let (receive, transmit) = (guest.queue(0, 256), guest.queue(1, 256));
        device.activate(guest.activation(features, &[&receive, &transmit])).unwrap();
        let wire = PacketSocket::on(device.interface());
        Self { guest, device, receive, transmit, wire, posted: Default::default() }
    }

    /// Gives the device a buffer for frames.
    pub fn post(&self, size: u32) -> u64 {
        let address = self.guest.pages(u64::from(size).div_ceil(4096));
        let head = self.receive.offer(&self.guest, &[(address, size, true)]);
        self.posted.borrow_mut().push_back((head, address, size));
        self.receive.notify();
        address
    }

    /// Waits for a frame. Returns its header and the rest.
    #[track_caller]
    pub fn next_frame(&self) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = self.next_part();
        let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
        for _ in 1..buffers {
            bytes.extend(self.next_part());
        }
        let frame = bytes.split_off(HEADER);
        (bytes, frame)
    }

    #[track_caller]
    pub fn next_part(&self) -> Vec<u8> {
        let (head, written) = self.receive.wait(&self.guest);
        let (posted, address, size) = self.posted.borrow_mut().pop_front().unwrap();
        assert_eq!(head, posted, "buffers come back in their order");
        assert!(written <= size);
        self.guest.read(address, written as usize)
    }

    /// The guest sends a frame with this header. Returns the address of both.
    pub fn send(&self, header: &[u8; HEADER], frame: &[u8]) -> u64 {
        let bytes = [header.as_slice(), frame].concat();
        let address = self.guest.pages((bytes.len() as u64).div_ceil(4096));
        self.guest.write(address, &bytes);
        let half = bytes.len() as u32 / 2;
        self.transmit.offer(
            &self.guest,
            &[(address, half, false), (address + u64::from(half), bytes.len() as u32 - half, false)],
        );
        self.transmit.notify();
        wait_until(|| self.transmit.poll(&self.guest).is_some());
        address
    }
}
