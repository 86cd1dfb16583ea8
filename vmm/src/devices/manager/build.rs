//! From the configuration of a device to the device.

use std::io::Write;
use std::sync::Arc;

use crate::Result;
use crate::config::{DiskConfig, NetConfig, RngConfig, VmConfig};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::{Console, ConsoleInput};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;

type Made = Result<Box<dyn VirtioDevice>>;

/// A device to be.
pub(super) struct Wanted<'a> {
    /// What its name begins with, if one is made up.
    pub(super) kind: &'a str,
    /// Its name, if it has one.
    pub(super) id: Option<String>,
    /// Makes it, for the name that it gets.
    pub(super) make: Box<dyn FnOnce(&str) -> Made + 'a>,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(kind: &'a str, id: Option<String>, make: impl FnOnce(&str) -> Made + 'a) -> Self {
        Self { kind, id, make: Box::new(make) }
    }

    pub(super) fn disk(mut config: DiskConfig) -> Self {
        Self::new("disk", config.id.take(), move |id| {
            config.id = Some(id.into());
            Ok(Box::new(Block::new(&config)?))
        })
    }

    pub(super) fn net(mut config: NetConfig) -> Self {
        Self::new("net", config.id.take(), move |id| {
            config.id = Some(id.into());
            Ok(Box::new(Net::new(&config)?))
        })
    }

    pub(super) fn console(output: Box<dyn Write + Send>, input: Arc<ConsoleInput>) -> Self {
        Self::new("console", None, |_| Ok(Box::new(Console::new(output, input)?)))
    }

    fn rng(config: RngConfig) -> Self {
        Self::new("rng", None, move |_| Ok(Box::new(Rng::new(&config)?)))
    }
}

/// The devices that a machine starts with, in the order of their slots.
pub(super) fn configured(config: &VmConfig) -> impl Iterator<Item = Wanted<'static>> {
    // MERGE: config.vsock and config.balloon, once their devices are there.
    let disks = config.disks.iter().cloned().map(Wanted::disk);
    let nets = config.nets.iter().cloned().map(Wanted::net);
    disks.chain(nets).chain(config.rng.iter().cloned().map(Wanted::rng))
}
