//! A guest with all devices but a disk, and what there is on the host's side of them.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hypervisor::GpaRange;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::expect;
use kvm_tests::hostile::virtio::{Device, Rings, WORKS, WRITE};
use kvm_tests::hostile::{Boot, HostileGuest};
use serde_json::Value;
use tempfile::TempDir;
use umbra_api::client::Client;
use vmm::devices::virtio::vsock::packet::{HOST_CID, Header, STREAM, op};

use crate::{MIB, PAGE, SECRET, ZEROS, finish, pages};

/// How long a device may take to notice something, and how often it is asked.
const LIMIT: Duration = Duration::from_secs(100);
const POLL: Duration = Duration::from_millis(10);

/// The guest's context identifier.
const CID: u64 = 3;
/// The guest's neighbour, whom nobody knows, so the host asks for it.
const NEIGHBOUR: &str = "10.79.0.2:9";

/// A device: its name among the counters, its place, and its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub id: &'static str,
    pub slot: u32,
    pub queues: usize,
    /// The counter of what it has done for the guest.
    pub done: &'static str,
    /// Whether it counts what failed, besides what was refused.
    pub counts_failed: bool,
}

pub const NET: Kind = Kind { id: "_net0", slot: 1, queues: 2, done: "tx_frames", counts_failed: true };
pub const VSOCK: Kind = Kind { id: "_vsock0", slot: 2, queues: 2, done: "rejected", counts_failed: true };
pub const RNG: Kind = Kind { id: "_rng0", slot: 3, queues: 1, done: "bytes", counts_failed: false };
pub const CONSOLE: Kind = Kind { id: "_console1", slot: 4, queues: 2, done: "output_bytes", counts_failed: true };
pub const KINDS: [Kind; 4] = [NET, VSOCK, RNG, CONSOLE];

/// The queues of those that have two.
pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;

impl Kind {
    /// The queue on which the guest asks for something.
    pub fn asks_on(&self) -> usize {
        self.queues - 1
    }
}

/// The guest, and pages for its drivers.
pub struct Bed {
    pub guest: HostileGuest,
    client: Client,
    folder: TempDir,
    /// Shared: a page for the rings of each device.
    shared: GpaRange,
    /// Shared: pages for data.
    pub data: GpaRange,
    /// The page behind them, which is private.
    pub secret: GpaRange,
}

impl Bed {
    /// Needs a network of its own.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let devices = [
            "--net".into(),
            "tap=hostile0,ip=10.79.0.1,mask=255.255.255.0".into(),
            "--vsock".into(),
            format!("cid={CID},socket={}", at("socket")),
            "--console".into(),
            format!("file={}", at("console")),
        ];
        let mut guest = HostileGuest::boot_with(&Boot { api: true, devices: &devices, ..Boot::default() })?;
        let client = Client::new(&guest.api_socket());
        let (shared, data, secret) =
            (pages(32 * MIB, KINDS.len() as u64)?, pages(40 * MIB, 2)?, pages(40 * MIB + 2 * PAGE, 1)?);
        guest.converts(shared, Shared)?;
        guest.converts(data, Shared)?;
        guest.fills(Private, secret, SECRET)?;
        Ok(Self { guest, client, folder, shared, data, secret })
    }

    /// The page that a device's rings are in.
    pub fn rings_page(&self, kind: Kind) -> anyhow::Result<GpaRange> {
        pages(self.shared.start() + u64::from(kind.slot - 1) * PAGE, 1)
    }

    /// Where its rings are, all of them in shared memory.
    pub fn rings(&self, kind: Kind) -> anyhow::Result<Vec<Rings>> {
        let page = self.rings_page(kind)?.start();
        Ok((0..kind.queues as u64).map(|queue| Rings::at(page + queue * Rings::SIZE)).collect())
    }

    /// The driver sets a device up as it should.
    pub fn starts(&mut self, kind: Kind, features: u64) -> anyhow::Result<Device> {
        let page = self.rings_page(kind)?;
        self.guest.fills(Shared, page, ZEROS)?;
        let rings = self.rings(kind)?;
        let (device, status) = Device::start(&mut self.guest, kind.slot, &rings, features)?;
        expect::equal(format!("the status of {}", kind.id), status, WORKS)?;
        Ok(device)
    }

    /// What the guest asks a device for: a frame, a packet or a text, which is put at the start of the data; or room for random
    /// bytes.
    pub fn request(&mut self, kind: Kind) -> anyhow::Result<(u64, u32, u16)> {
        let at = self.data.start();
        let message = match kind {
            RNG => return Ok((at, 64, WRITE)),
            NET => [vec![0; 12], vec![0xff; 6], vec![2, 0, 0, 0, 0, 1, 0x88, 0xb5], vec![0; 46]].concat(),
            VSOCK => packet(op::REQUEST, 1, 0),
            _ => b"hello, this is the guest's console\n".to_vec(),
        };
        self.guest.stores_bytes((Shared, at), &message)?;
        Ok((at, message.len() as u32, 0))
    }

    /// The driver asks a device for something, which it does.
    pub fn works(&mut self, kind: Kind, device: &mut Device) -> anyhow::Result<()> {
        let before = self.count(kind, kind.done)?;
        let request = self.request(kind)?;
        device.offers(&mut self.guest, kind.asks_on(), 0, &[request])?;
        device.has_used_all(&mut self.guest, kind.asks_on())?;
        // The console hands a chain back before the output has it.
        self.waits_for(kind, |bed| Ok(bed.count(kind, kind.done)? > before))
    }

    /// Sees to it that a device has something for the guest: a frame of the host's, or the answer to a request.
    pub fn causes_something_to_receive(&mut self, kind: Kind, device: &mut Device) -> anyhow::Result<()> {
        if kind == NET { self.host_sends_a_frame() } else { self.works(kind, device) }
    }

    /// The driver has a buffer for what a device has for it, and gets it.
    pub fn receives(&mut self, kind: Kind, device: &mut Device) -> anyhow::Result<()> {
        let made = device.offers(&mut self.guest, RECEIVE, 0, &[(self.data.start() + PAGE, 2048, WRITE)])?;
        self.waits_for(kind, |bed| {
            bed.causes_something_to_receive(kind, device)?;
            Ok(device.used(&mut bed.guest, RECEIVE)? == made)
        })?;
        let (_, written) = device.has_used_all(&mut self.guest, RECEIVE)?;
        ensure!(written > 0, "{} used a buffer without anything in it", kind.id);
        Ok(())
    }

    /// Waits for something to happen.
    pub fn waits_for(
        &mut self,
        kind: Kind,
        mut what: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let limit = Instant::now() + LIMIT;
        while !what(self)? {
            ensure!(Instant::now() < limit, "it does not happen: {}", self.counters(kind)?);
            sleep(POLL);
        }
        Ok(())
    }

    /// Has the host send a frame to the guest: it asks who has an address.
    fn host_sends_a_frame(&self) -> anyhow::Result<()> {
        let socket = UdpSocket::bind("10.79.0.1:0").context("cannot bind to the tap's address")?;
        socket.send_to(&[0], NEIGHBOUR).context("cannot send to the guest").map(drop)
    }

    /// The path that connections of the guest's to this port go to.
    pub fn socket(&self, port: u32) -> PathBuf {
        self.folder.path().join(format!("socket_{port}"))
    }

    /// What the guest's console has said.
    pub fn said(&self) -> anyhow::Result<Vec<u8>> {
        Ok(std::fs::read(self.folder.path().join("console"))?)
    }

    pub fn counters(&self, kind: Kind) -> anyhow::Result<Value> {
        let answer = self.client.call("vm.counters", &[], None, "application/json")?;
        let counters: Value = serde_json::from_slice(&answer.body)?;
        Ok(counters[kind.id].clone())
    }

    pub fn count(&self, kind: Kind, name: &str) -> anyhow::Result<u64> {
        let counters = self.counters(kind)?;
        counters[name].as_u64().with_context(|| format!("there is no {name} of {} in {counters}", kind.id))
    }

    /// The secret is where it was, and nowhere else.
    pub fn nothing_moved(&mut self) -> anyhow::Result<()> {
        self.guest.sees(Private, self.secret, SECRET)?;
        let memory = self.guest.shared_memory()?;
        memory.never_holds(SECRET)?;
        memory.holds_low(self.secret, ZEROS)?;
        let said = self.said()?;
        ensure!(!said.windows(8).any(|bytes| bytes == SECRET.to_le_bytes()), "the console's output has the secret");
        Ok(())
    }

    /// The machine can still be paused, which waits for all devices, and switched off.
    pub fn ends(self) -> anyhow::Result<()> {
        for action in ["vm.pause", "vm.resume"] {
            self.client.call(action, &[], None, "application/json").with_context(|| format!("{action} failed"))?;
        }
        finish(self.guest)
    }
}

/// A packet from port 9 of the guest to this port of the host, with so many bytes of data behind it.
pub fn packet(op: u16, dst_port: u32, len: u32) -> Vec<u8> {
    let (src_cid, dst_cid, src_port, kind, buf_alloc) = (CID, HOST_CID, 9, STREAM, 4096);
    let header = Header { src_cid, dst_cid, src_port, dst_port, len, kind, op, buf_alloc, ..Header::default() };
    header.to_bytes().to_vec()
}
