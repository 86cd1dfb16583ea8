//! The commands, and what each calls.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use umbra_api::types::{DiskConfig, NetConfig, VsockConfig};

use super::memory::{self, MemoryCommand};
use super::{Session, check_reader, table, write_out};
use crate::options;

/// What to do.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Tell who answers.
    Ping,
    /// Tell of the machine.
    Info,
    /// Create a machine from a JSON configuration.
    Create {
        /// The file; - for standard input.
        config: PathBuf,
    },
    /// Boot the machine.
    Boot,
    /// End the machine; its configuration stays.
    Shutdown,
    /// Reset the machine.
    Reboot,
    /// End the machine and forget it.
    Delete,
    /// Let the machine stand still.
    Pause,
    /// Let the machine go on.
    Resume,
    /// Press the machine's power button.
    PowerButton,
    /// Give the machine's processors a non-maskable interrupt.
    Nmi,
    /// Add a disk.
    AddDisk {
        /// As with `umbra run --disk`.
        #[arg(value_name = "path=PATH[,...]", value_parser = options::disk)]
        config: DiskConfig,
    },
    /// Add a network device.
    AddNet {
        /// As with `umbra run --net`.
        #[arg(value_name = "tap=NAME[,...]", value_parser = options::net)]
        config: NetConfig,
    },
    /// Add the socket device.
    AddVsock {
        /// As with `umbra run --vsock`.
        #[arg(value_name = "cid=CID,socket=PATH[,...]", value_parser = options::vsock)]
        config: VsockConfig,
    },
    /// Remove a device.
    RemoveDevice {
        /// Its name, as `info` lists it.
        id: String,
    },
    /// Resize the balloon.
    Resize {
        /// What the guest is to give back.
        #[arg(long, value_name = "SIZE", value_parser = options::bytes)]
        balloon: u64,
    },
    /// Tell what devices count.
    Counters,
    /// Tell figures in Prometheus' text format.
    Metrics,
    /// Tell what happens, until interrupted.
    Events,
    /// Memory: its map, its figures, its conversions.
    Memory {
        #[command(subcommand)]
        command: MemoryCommand,
    },
    /// End the machine and the process that runs it.
    VmmShutdown,
    /// Write the API's OpenAPI document.
    Openapi,
    /// Call any operation of the API by its name, such as vm.boot.
    Call {
        /// The name, as in the OpenAPI document.
        operation: String,
        /// A file with the body; - for standard input.
        #[arg(long, value_name = "PATH")]
        body: Option<PathBuf>,
    },
}

/// What a command writes that can't be JSON, if it is such a command.
pub(super) fn no_json(command: &Command) -> Option<&'static str> {
    match command {
        Command::Metrics => Some("metrics, which are in Prometheus' text format"),
        Command::Memory { command } => memory::no_json(command),
        _ => None,
    }
}

impl Session {
    /// Does it.
    pub(super) fn run(&self, command: &Command) -> anyhow::Result<()> {
        match command {
            Command::Ping => self.show("vmm.ping", None, table::fields),
            Command::Info => self.show("vm.info", None, table::info),
            Command::Create { config } => self.show("vm.create", Some(&read(config)?), table::fields),
            Command::Boot => self.show("vm.boot", None, table::fields),
            Command::Shutdown => self.show("vm.shutdown", None, table::fields),
            Command::Reboot => self.show("vm.reboot", None, table::fields),
            Command::Delete => self.show("vm.delete", None, table::fields),
            Command::Pause => self.show("vm.pause", None, table::fields),
            Command::Resume => self.show("vm.resume", None, table::fields),
            Command::PowerButton => self.show("vm.power-button", None, table::fields),
            Command::Nmi => self.show("vm.nmi", None, table::fields),
            Command::AddDisk { config } => self.add("vm.add-disk", config),
            Command::AddNet { config } => self.add("vm.add-net", config),
            Command::AddVsock { config } => self.add("vm.add-vsock", config),
            Command::RemoveDevice { id } => self.show("vm.remove-device", Some(&json!({ "id": id })), table::fields),
            Command::Resize { balloon } => {
                self.show("vm.resize", Some(&json!({ "desired_balloon": balloon })), table::fields)
            }
            Command::Counters => self.show("vm.counters", None, table::counters),
            Command::Metrics => write_out(&self.client.call("vmm.metrics", &[], None, "text/plain")?.body),
            Command::Events => self.events(),
            Command::Memory { command } => self.memory(command),
            Command::VmmShutdown => self.show("vmm.shutdown", None, table::fields),
            Command::Openapi => self.show("openapi.json", None, |document| format!("{document:#}\n")),
            Command::Call { operation, body } => {
                let body = body.as_deref().map(read).transpose()?;
                self.pass_on(operation, body.as_ref())
            }
        }
    }

    fn add(&self, operation: &str, config: &impl Serialize) -> anyhow::Result<()> {
        self.show(operation, Some(&serde_json::to_value(config)?), table::fields)
    }

    /// Writes an answer as it comes: it may have no end.
    fn pass_on(&self, operation: &str, body: Option<&Value>) -> anyhow::Result<()> {
        let mut answer = self.client.read(operation, &[], body, "application/json")?;
        let mut bytes = vec![0; 64 << 10];
        loop {
            let count = answer.read(&mut bytes).context("the connection to umbra broke")?;
            if count == 0 {
                return Ok(());
            }
            write_out(&bytes[..count])?;
        }
    }

    fn events(&self) -> anyhow::Result<()> {
        for line in self.client.lines("vm.events")? {
            let line = line.context("the connection to umbra broke")?;
            // There are lines without an event every few seconds.
            check_reader()?;
            let Some(data) = line.strip_prefix("data:") else { continue };
            let event: Value = serde_json::from_str(data).context("umbra's event is no JSON")?;
            let text = if self.json { format!("{event}\n") } else { table::event(&event) };
            write_out(text.as_bytes())?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    match path == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(drop),
        false => std::fs::read_to_string(path).map(|contents| text = contents),
    }
    .with_context(cannot)?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}
