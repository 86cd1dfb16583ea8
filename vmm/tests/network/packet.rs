//! A packet socket on an interface: the host's side of the wire (packet(7)).
#![expect(unsafe_code, reason = "the standard library has no packet sockets")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A type of frames that nobody uses (IEEE 802, local experimental).
pub const ETHERTYPE: u16 = 0x88b5;

pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// For frames of that type.
    pub fn on(interface: &str) -> Self {
        Self::for_type(interface, ETHERTYPE)
    }

    /// For frames of any type, which those that it sends should have: it is what the kernel believes.
    pub fn for_type(interface: &str, ethertype: u16) -> Self {
        let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let index = rustix::net::netdevice::name_to_index(&probe, interface).unwrap();
        // SAFETY: plain numbers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: it was just made, and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zeros are an address: plain numbers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = index as i32;
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: an address and its size.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Self(socket)
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.0, frame).unwrap(), frame.len());
    }

    pub fn receive(&self) -> Vec<u8> {
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut ready, Some(&patience)).unwrap(), 1, "no frame comes");
        let mut frame = vec![0; 70000];
        let size = rustix::io::read(&self.0, &mut frame).unwrap();
        frame.truncate(size);
        frame
    }
}
