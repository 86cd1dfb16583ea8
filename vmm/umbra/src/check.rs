//! `umbra check`: what this host can do, and what each isolation lacks here.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use arch::x86_64::Isolation;
use hypervisor::kvm::KvmHypervisor;
use hypervisor::{Capability, Hypervisor, MemoryCaps, VmType};
use serde::Serialize;

/// Tell what this host can do, and what it lacks for each isolation.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status:
  0  this host offers an isolation with user-unmappable memory
  1  it does not, or KVM can't be asked
  2  a command line that makes no sense")]
pub struct Args {
    /// Write one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    capabilities: Vec<CapabilityReport>,
    guest_memfd_flags: u64,
    max_regions: u32,
    isolations: Vec<IsolationReport>,
}

#[derive(Serialize)]
struct CapabilityReport {
    name: String,
    present: bool,
}

#[derive(Serialize)]
struct IsolationReport {
    name: &'static str,
    unmappable: bool,
    available: bool,
    missing: Vec<Missing>,
}

#[derive(Serialize)]
struct Missing {
    name: String,
    remedy: &'static str,
}

impl Report {
    fn new(caps: &MemoryCaps) -> Self {
        let vm_types = VmType::ALL.map(Capability::VmType);
        let others = [
            Capability::UserMemory2,
            Capability::GuestMemfd,
            Capability::MemoryAttributes,
            Capability::MemoryFaultInfo,
            Capability::ExitHypercall,
            Capability::PreFault,
            Capability::UserSpaceMsr,
            Capability::MsrFilter,
            Capability::AmdProcessor,
        ];
        let capability =
            |&capability: &Capability| CapabilityReport { name: capability.name(), present: caps.has(capability) };
        let isolation = |isolation: Isolation| {
            let missing: Vec<Missing> = isolation
                .missing(caps)
                .into_iter()
                .map(|capability| Missing { name: capability.name(), remedy: capability.remedy() })
                .collect();
            IsolationReport {
                name: isolation.name(),
                unmappable: isolation.is_unmappable(),
                available: missing.is_empty(),
                missing,
            }
        };
        Self {
            capabilities: vm_types.iter().chain(&others).map(capability).collect(),
            guest_memfd_flags: caps.guest_memfd_flags,
            max_regions: caps.max_regions,
            isolations: Isolation::ALL.map(isolation).into(),
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "This host's KVM:")?;
        for capability in &self.capabilities {
            writeln!(out, "  {} {}", if capability.present { "yes" } else { "no " }, capability.name)?;
        }
        writeln!(out, "\nIsolations:")?;
        for isolation in &self.isolations {
            let memory = if isolation.unmappable { "unmappable" } else { "ordinary" };
            let verdict = if isolation.available { "works here" } else { "does not work here; it lacks" };
            writeln!(out, "  {:<9} ({memory} memory) {verdict}", isolation.name)?;
            for missing in &isolation.missing {
                writeln!(out, "      {}: {}", missing.name, missing.remedy)?;
            }
        }
        Ok(())
    }
}

pub fn check(args: &Args) -> anyhow::Result<ExitCode> {
    let hypervisor = KvmHypervisor::open()?;
    let report = Report::new(hypervisor.caps());
    let mut out = io::stdout().lock();
    let written =
        if args.json { writeln!(out, "{}", serde_json::to_string_pretty(&report)?) } else { report.write(&mut out) };
    written.context("cannot write the report to standard output")?;
    let unmappable = report.isolations.iter().any(|isolation| isolation.unmappable && isolation.available);
    Ok(if unmappable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
