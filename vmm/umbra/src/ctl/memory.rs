//! `umbra ctl memory`: the map, figures, conversions and policy.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};
use umbra_api::types::{MemoryMap, MemoryRun, PolicyConfig};

use super::{Session, table, watch, write_out};
use crate::options;

/// The most runs that are asked for at a time.
const PAGE: u32 = 10_000;

/// What to do with memory.
#[derive(clap::Subcommand)]
pub enum MemoryCommand {
    /// Show the state of memory, as a table or as a picture.
    Map(MapArgs),
    /// Show figures.
    Stats,
    /// Convert memory of the window that the machine reserves.
    Convert(ConvertArgs),
    /// Show what conversions may do, or change it.
    Policy {
        /// Such as implicit=refuse,explicit=100/s; what is not said stays.
        #[arg(value_name = "KIND=RULE,...", value_parser = options::conversions)]
        rules: Option<PolicyConfig>,
    },
    /// Show the map as it changes, until q or Ctrl-C.
    Watch(watch::Args),
}

#[derive(clap::Args)]
pub struct MapArgs {
    /// Only addresses from here on.
    #[arg(long, value_name = "ADDRESS", value_parser = options::bytes)]
    start: Option<u64>,
    /// Only addresses below.
    #[arg(long, value_name = "ADDRESS", value_parser = options::bytes)]
    end: Option<u64>,
    /// Only runs in this state.
    #[arg(long, value_parser = ["shared", "private", "converting"])]
    state: Option<String>,
    /// Write a picture of all memory to this file instead; - for standard output.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["start", "end", "state"])]
    svg: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct ConvertArgs {
    /// The first address.
    #[arg(long, value_name = "ADDRESS", value_parser = options::bytes)]
    gpa: u64,
    /// How much.
    #[arg(long, value_name = "SIZE", value_parser = options::bytes)]
    size: u64,
    /// The state to convert to.
    #[arg(long, value_parser = ["shared", "private"])]
    to: String,
    /// Accept that what changes its state loses its contents.
    #[arg(long, required = true)]
    discard: bool,
}

/// What a command writes that can't be JSON, if it is such a command.
pub(super) fn no_json(command: &MemoryCommand) -> Option<&'static str> {
    match command {
        MemoryCommand::Watch(_) => Some("memory watch, which draws"),
        MemoryCommand::Map(MapArgs { svg: Some(_), .. }) => Some("pictures"),
        _ => None,
    }
}

impl Session {
    pub(super) fn memory(&self, command: &MemoryCommand) -> anyhow::Result<()> {
        match command {
            MemoryCommand::Map(args) => self.map(args),
            MemoryCommand::Stats => self.show("vm.memory-stats", None, table::figures),
            MemoryCommand::Convert(args) => {
                let body = json!({ "gpa": args.gpa, "size": args.size, "to": args.to, "contents": "discard" });
                self.show("vm.memory-convert", Some(&body), table::figures)
            }
            MemoryCommand::Policy { rules: None } => self.show("vm.memory-policy", None, table::fields),
            MemoryCommand::Policy { rules: Some(rules) } => {
                self.show("vm.memory-policy.set", Some(&serde_json::to_value(rules)?), table::fields)
            }
            MemoryCommand::Watch(args) => watch::watch(self, args),
        }
    }

    fn map(&self, args: &MapArgs) -> anyhow::Result<()> {
        if let Some(path) = &args.svg {
            let picture = self.client.call("vm.memory-map", &[], None, "image/svg+xml")?.body;
            if path.as_os_str() == "-" {
                return write_out(&picture);
            }
            return std::fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()));
        }
        let runs = self.runs(args.start, args.end, args.state.as_deref())?;
        let text = match self.json {
            true => format!("{:#}\n", json!({ "runs": runs, "next": Value::Null })),
            false => table::runs(&runs),
        };
        write_out(text.as_bytes())
    }

    /// All runs, page by page.
    pub(super) fn runs(
        &self,
        start: Option<u64>,
        end: Option<u64>,
        state: Option<&str>,
    ) -> anyhow::Result<Vec<MemoryRun>> {
        let (mut runs, mut start) = (Vec::new(), start);
        loop {
            let mut query = vec![("limit", PAGE.to_string())];
            query.extend(start.map(|start| ("start", start.to_string())));
            query.extend(end.map(|end| ("end", end.to_string())));
            query.extend(state.map(|state| ("state", state.to_owned())));
            let answer = self.call("vm.memory-map", &query, None)?;
            let page: MemoryMap = serde_json::from_slice(&answer.body).context("umbra's answer is no map")?;
            runs.extend(page.runs);
            match page.next {
                Some(next) => start = Some(next),
                None => return Ok(runs),
            }
        }
    }
}
