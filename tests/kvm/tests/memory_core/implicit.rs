//! N1: an access that contradicts the map, granted and refused.

use anyhow::{Context, bail, ensure};
use arch::x86_64::private_faults;
use hypervisor::PageState::{Private, Shared};
use kvm_tests::backend::Backend;
use kvm_tests::expect;
use kvm_tests::guest::Outcome;
use kvm_tests::pattern::Pattern;
use vm_memory::GuestAddress;
use vmm::memory::conversion::{Policy, Rule};
use vmm::memory::{ConversionError, RamOptions};

use crate::Test;
use crate::bed::{Bed, pages};

pub const TESTS: &[Test] = &[
    ("n1_an_implicit_conversion_is_granted_and_the_access_goes_on", granted),
    ("n1_a_refused_implicit_conversion_is_a_general_protection_fault", refused),
];

const MIB: u64 = 1 << 20;
const OPEN: Pattern = Pattern::new(0x0be4);

fn converted(bed: &Bed, outcome: Outcome) -> anyhow::Result<Result<bool, ConversionError>> {
    let Outcome::Fault(fault) = outcome else { bail!("the guest is not stopped: {outcome:x?}") };
    let request = private_faults::from_memory_fault(bed.ram.layout(), fault)
        .map_err(|refusal| anyhow::anyhow!("the fault is no request: {refusal}"))?;
    Ok(bed.ram.convert(request))
}

/// The guest touches private pages through the shared alias: each becomes shared, holds zeros, and can be written.
fn granted(backend: &Backend) -> anyhow::Result<()> {
    let bed = Bed::software(backend, 4 * MIB, RamOptions::default())?;
    let mut guest = bed.guest(0)?;
    let range = pages(2 * MIB, 3)?;
    bed.convert(range, Private)?;
    let mut outcome = guest.writes(range, OPEN)?;
    for page in 0..3 {
        expect::equal("the map's state before", bed.state(range.start() + page * 4096), Some(Private))?;
        converted(&bed, outcome)??;
        expect::equal("the map's state behind", bed.state(range.start() + page * 4096), Some(Shared))?;
        outcome = guest.resume()?;
    }
    outcome.done()?;
    guest.sees(range, OPEN)?.done()?;
    let view = bed.ram.devices().view("device");
    let word: u32 = view.read_obj(GuestAddress(range.start())).context("a device reads the page")?;
    expect::equal("what a device reads", word, OPEN.word(range.start()))?;
    expect::equal("implicit conversions", bed.ram.statistics().conversions_implicit, 3)
}

fn refused(backend: &Backend) -> anyhow::Result<()> {
    let policy = Policy { implicit: Rule::Refuse, ..Policy::default() };
    let bed = Bed::software(backend, 4 * MIB, RamOptions { policy, ..RamOptions::default() })?;
    let mut guest = bed.guest(0)?;
    let range = pages(2 * MIB, 1)?;
    bed.convert(range, Private)?;
    for _ in 0..3 {
        let outcome = guest.writes(range, OPEN)?;
        let error = converted(&bed, outcome)?.err().context("it was granted")?;
        ensure!(matches!(error, ConversionError::Refused { .. }), "{error:?}");
        guest.vcpu().inject_general_protection()?;
        expect::equal("what the guest takes", guest.resume()?, Outcome::GeneralProtection)?;
        expect::equal("the map's state", bed.state(range.start()), Some(Private))?;
        ensure!(!bed.has_shared_memory(range.start())?, "the refused access left memory behind");
    }
    // The guest runs on, and may be granted the next one.
    bed.ram.set_policy(Policy::default());
    let outcome = guest.writes(range, OPEN)?;
    converted(&bed, outcome)??;
    guest.resume()?.done()
}
