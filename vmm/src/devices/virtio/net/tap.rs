//! A tap interface of the host's (Linux `Documentation/networking/tuntap.rst`), with one descriptor for each pair of queues.
//!
//! An interface that is there is used as it is; one that is not is made, and goes when this is dropped. Frames come and go
//! with virtio's header before them, which the kernel understands: it does checksums and segmentation where either side left
//! them to the other.
//!
//! Guarantees: descriptors never block. What is set already is not set again, so that an interface which an administrator
//! has prepared for a user needs no privilege.
#![expect(unsafe_code, reason = "interfaces are set up by ioctl")]

use std::ffi::c_short;
use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_UP, IFF_VNET_HDR};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::HEADER;
use crate::config::NetConfig;
use crate::{Error, Result};

/// What an interface is called that nobody named; the kernel puts a number.
const PATTERN: &str = "umbra%d";

/// The most stale frames that are thrown away: more than an interface holds back.
const MAX_STALE: usize = 1 << 16;

/// A tap interface.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    /// Whether it has the kind of queues that can be detached.
    multi: bool,
    segments_udp: bool,
}

impl Tap {
    /// Opens or makes it, and sets it up.
    ///
    /// # Errors
    /// An interface that is in use, is no tap, or may not be used or changed.
    pub fn open(config: &NetConfig) -> Result<Self> {
        let wanted = config.tap.as_deref().unwrap_or(PATTERN);
        let failed = |problem: String| Error::Device { device: format!("network interface {wanted}"), problem };
        let first = open_queue().map_err(|error| {
            failed(format!("cannot open /dev/net/tun: {error}; load the module tun, or get access to it"))
        })?;
        let mut multi = config.queue_pairs > 1;
        let mut attached = attach(&first, wanted, multi);
        if !multi && matches!(&attached, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            // It may be there, with several queues of which one is needed.
            multi = true;
            attached = attach(&first, wanted, multi);
        }
        let name = attached.map_err(|error| failed(remedy(&error)))?;
        let mut tap = Self { name, queues: vec![first], multi, segments_udp: false };
        for _ in 1..config.queue_pairs {
            let queue = open_queue().map_err(|error| failed(error.to_string()))?;
            attach(&queue, &tap.name, multi).map_err(|error| failed(remedy(&error)))?;
            tap.queues.push(queue);
        }
        for queue in &tap.queues {
            let size = HEADER as libc::c_int;
            ioctl(queue, libc::TUNSETVNETHDRSZ, &size).map_err(|error| failed(remedy(&error)))?;
        }
        let uso = libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        tap.segments_udp = tap.set_offloads(uso).is_ok();
        tap.set_offloads(0).map_err(|error| failed(format!("cannot set its offloads: {error}")))?;
        tap.set_up(config).map_err(|(what, error)| {
            failed(format!("cannot {what}: {error}; do it beforehand, or run with CAP_NET_ADMIN"))
        })?;
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it segments UDP (Linux 6.2).
    pub fn segments_udp(&self) -> bool {
        self.segments_udp
    }

    /// The descriptor of a pair of queues.
    pub fn queue(&self, pair: usize) -> BorrowedFd<'_> {
        // Pairs are numbered as the queues are.
        self.queues[pair].as_fd()
    }

    /// Says what the guest does itself: `TUN_F_*`.
    ///
    /// # Errors
    /// Offloads that the kernel does not know.
    pub fn set_offloads(&self, offloads: libc::c_uint) -> io::Result<()> {
        // SAFETY: this request takes a number in place of an address.
        check(unsafe { libc::ioctl(self.queues[0].as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
    }

    /// Has frames come to the first `count` pairs of queues only.
    ///
    /// # Errors
    /// The system's.
    pub fn use_pairs(&self, count: usize) -> io::Result<()> {
        if !self.multi {
            return Ok(());
        }
        for (pair, queue) in self.queues.iter().enumerate() {
            let mut request = request("");
            let flags = if pair < count { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
            request.ifr_ifru.ifru_flags = flags as c_short;
            match ioctl(queue, libc::TUNSETQUEUE, &request) {
                // As it is already.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Throws away what came for whoever used the device before.
    pub fn drain(&self) {
        let mut frame = [0; 2048];
        for queue in &self.queues {
            (0..MAX_STALE).take_while(|_| rustix::io::read(queue, &mut frame).is_ok()).for_each(drop);
        }
    }

    fn set_up(&self, config: &NetConfig) -> std::result::Result<(), (&'static str, io::Error)> {
        let told = |what| move |error: io::Error| (what, error);
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| ("open a socket", error.into()))?;
        let mut request = request(&self.name);
        if let Some(mtu) = config.mtu.map(libc::c_int::from) {
            query(&socket, libc::SIOCGIFMTU, &mut request).map_err(told("ask for its MTU"))?;
            // SAFETY: the kernel has just written it.
            if unsafe { request.ifr_ifru.ifru_mtu } != mtu {
                request.ifr_ifru.ifru_mtu = mtu;
                ioctl(&socket, libc::SIOCSIFMTU, &request).map_err(told("set its MTU"))?;
            }
        }
        if let Some((address, mask)) = config.host_address {
            set_address(&socket, &mut request, [libc::SIOCGIFADDR, libc::SIOCSIFADDR], address)
                .map_err(told("set its address"))?;
            set_address(&socket, &mut request, [libc::SIOCGIFNETMASK, libc::SIOCSIFNETMASK], mask)
                .map_err(told("set its mask"))?;
        }
        query(&socket, libc::SIOCGIFFLAGS, &mut request).map_err(told("ask for its state"))?;
        // SAFETY: the kernel has just written them.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        if flags & IFF_UP as c_short == 0 {
            request.ifr_ifru.ifru_flags = flags | IFF_UP as c_short;
            ioctl(&socket, libc::SIOCSIFFLAGS, &request).map_err(told("switch it on"))?;
        }
        Ok(())
    }
}

fn open_queue() -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    Ok(options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?.into())
}

/// Makes a descriptor a queue of this interface. Returns the name of that.
fn attach(queue: &OwnedFd, name: &str, multi: bool) -> io::Result<String> {
    let mut request = request(name);
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if multi { IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = flags as c_short;
    query(queue, libc::TUNSETIFF, &mut request)?;
    let name: Vec<u8> = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// What to do about an interface that can't be had.
fn remedy(error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => "prepare it (ip tuntap add NAME mode tap user USER), or run with CAP_NET_ADMIN",
        Some(libc::EBUSY) => "it is in use: name another one, or end the program that uses it",
        Some(libc::EINVAL) => "it must be a tap, with multi_queue if there are several pairs of queues, or not exist",
        _ => "name another one",
    };
    format!("cannot use it: {error}; {remedy}")
}

/// A request about an interface; a name that is too long was refused before.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros are a request: plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request
}

fn set_address(
    socket: &OwnedFd,
    request: &mut libc::ifreq,
    [get, set]: [libc::Ioctl; 2],
    address: Ipv4Addr,
) -> io::Result<()> {
    let wanted = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // An interface without address has none to tell.
    let has = query(socket, get, request).is_ok();
    let place = (&raw mut request.ifr_ifru).cast::<libc::sockaddr_in>();
    // SAFETY: the union has room for an address, and is aligned for one.
    let present = unsafe { place.read_unaligned() };
    if has && present.sin_addr.s_addr == wanted.sin_addr.s_addr {
        return Ok(());
    }
    // SAFETY: as above.
    unsafe { place.write_unaligned(wanted) };
    ioctl(socket, set, request)
}

/// Makes a request that the kernel reads.
fn ioctl<T>(file: &OwnedFd, number: libc::Ioctl, argument: &T) -> io::Result<()> {
    // SAFETY: each caller passes what its request reads, which lives as long as the call takes.
    check(unsafe { libc::ioctl(file.as_raw_fd(), number, std::ptr::from_ref(argument)) })
}

/// Makes a request about an interface that the kernel answers.
fn query(file: &OwnedFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all these requests read and write an `ifreq`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), number, std::ptr::from_mut(request)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
