//! M: mismatches of accesses and attributes, by type of VM.
//!
//! Only the model can have them all: software-protected VMs take the attribute itself for the access, and SEV-SNP and TDX
//! need their hardware and a launch.

use std::sync::Arc;

use anyhow::{bail, ensure};
use hypervisor::PageState::{self, Private, Shared};
use hypervisor::model::{Action, Answer, ModelHypervisor, ModelVm, Outcome, Script, allocated, read_private};
use hypervisor::{
    Backing, Exit, GpaRange, GuestMemfd, MapGpaRangeReply, MemoryFault, Region, SharedMemory, Slice, Vcpu, Vm, VmType,
};
use kvm_tests::PAGE;
use kvm_tests::expect;

use crate::BASE;

/// A contract of the model alone.
pub type OnModel = (&'static str, fn(&ModelHypervisor) -> anyhow::Result<()>);

pub const CONTRACTS: &[OnModel] = &[
    ("m1_an_sev_snp_guests_c_bit_must_be_the_attribute", |model| mismatch(model, VmType::SevSnp)),
    ("m1_a_tdx_guests_shared_bit_must_be_the_attribute", |model| mismatch(model, VmType::Tdx)),
    ("m1_a_tdx_guests_shared_bit_may_be_the_higher_one", |model| {
        mismatch(&model.clone().with_tdx_shared_bit(51), VmType::Tdx)
    }),
    ("m2_a_software_protected_guest_never_mismatches", never_mismatches),
    ("m3_other_guests_are_never_private", never_private),
    ("m4_an_sev_snp_guest_hears_yes_or_no", |model| answers(model, VmType::SevSnp, Answer::Refused)),
    ("m4_a_tdx_guest_hears_where_to_go_on", |model| {
        let gpa = model.create(VmType::Tdx)?.address(BASE, Shared).gpa;
        answers(model, VmType::Tdx, Answer::Retry { gpa })
    }),
    ("m5_a_large_tdx_request_comes_in_pieces_and_may_stop_between_them", pieces),
    ("m6_msrs_are_left_to_the_vmm_as_filtered", msrs),
];

const SIZE: u64 = 4 * PAGE;

/// A VM with four pages in both backings, and its first vCPU.
struct Setting {
    vm: Arc<ModelVm>,
    vcpu: Box<dyn Vcpu>,
    script: Script,
    shared: Arc<SharedMemory>,
    private: Arc<GuestMemfd>,
    range: GpaRange,
}

impl Setting {
    fn new(model: &ModelHypervisor, vm_type: VmType) -> anyhow::Result<Self> {
        let vm = model.create(vm_type)?;
        vm.exit_on_map_gpa_range()?;
        let shared = Arc::new(SharedMemory::new("model", SIZE)?);
        let private = vm.create_guest_memfd(SIZE)?;
        let range = GpaRange::new(BASE, SIZE)?;
        let region = Region {
            range,
            shared: Some(Slice { backing: shared.clone(), offset: 0 }),
            private: Some(Slice { backing: private.clone(), offset: 0 }),
        };
        vm.add_region(0, &region)?;
        Ok(Self { vcpu: vm.create_vcpu(0)?, script: vm.script(0), vm, shared, private, range })
    }

    fn held(&self) -> anyhow::Result<[u64; 2]> {
        let bytes =
            |backing| -> anyhow::Result<u64> { Ok(allocated(&backing)?.iter().map(|run| run.end - run.start).sum()) };
        Ok([bytes(Backing::Shared(self.shared.clone()))?, bytes(Backing::Private(self.private.clone()))?])
    }

    /// The vCPU runs, and this is all that its script came to.
    fn comes_to(&mut self, outcomes: &[Outcome]) -> anyhow::Result<()> {
        let exit = self.vcpu.run()?;
        ensure!(matches!(exit, Exit::Halt), "{exit:x?}, expected nothing before {outcomes:x?}");
        expect::equal("what the guest did", self.script.take_outcomes().as_slice(), outcomes)
    }

    fn faults(&mut self, gpa: u64, access: PageState) -> anyhow::Result<()> {
        let expected = MemoryFault { gpa, size: PAGE, private: access == Private };
        match self.vcpu.run()? {
            Exit::MemoryFault(fault) => expect::equal("the fault", fault, expected),
            other => bail!("{other:x?}, expected {expected:x?}"),
        }
    }
}

/// Whatever the access and the attribute: they are the same and it goes to that side, or it leaves with the page and its
/// own kind, touches nothing, and goes through once the attribute follows.
fn mismatch(model: &ModelHypervisor, vm_type: VmType) -> anyhow::Result<()> {
    for (attribute, access) in [(Shared, Shared), (Shared, Private), (Private, Shared), (Private, Private)] {
        let touches: [fn(_) -> _; 3] = [
            |at| (Action::write(at, *b"word"), Outcome::Written),
            |at| (Action::read(at, 4), Outcome::Read(vec![0; 4])),
            |at| (Action::execute(at), Outcome::Executed),
        ];
        for touch in touches {
            let mut setting = Setting::new(model, vm_type)?;
            let page = GpaRange::new(BASE + PAGE, PAGE)?;
            setting.vm.set_attribute(page, attribute)?;
            let (action, outcome) = touch(setting.vm.address(page.start() + 8, access));
            setting.script.push(action);
            if attribute != access {
                for _ in 0..2 {
                    setting.faults(page.start(), access)?;
                    expect::equal("memory held after a refused access", setting.held()?, [0, 0])?;
                }
                setting.vm.set_attribute(page, access)?;
            }
            setting.comes_to(&[outcome])?;
            let expected = if access == Shared { [PAGE, 0] } else { [0, PAGE] };
            expect::equal("shared and private memory held", setting.held()?, expected)?;
        }
    }
    // Where no region is, a private access that the attribute agrees with leaves all the same; a shared one is MMIO.
    let mut setting = Setting::new(model, vm_type)?;
    let nowhere = GpaRange::new(setting.range.end(), PAGE)?;
    setting.script.push(Action::read(setting.vm.address(nowhere.start(), Private), 4));
    setting.faults(nowhere.start(), Private)?;
    setting.vm.set_attribute(nowhere, Private)?;
    setting.faults(nowhere.start(), Private)?;
    setting.script.clear();
    setting.vm.set_attribute(nowhere, Shared)?;
    setting.script.push(Action::read(setting.vm.address(nowhere.start(), Shared), 4));
    match setting.vcpu.run()? {
        Exit::MmioRead { gpa, data } => {
            expect::equal("where no memory is", gpa, nowhere.start())?;
            data.copy_from_slice(b"mmio");
        }
        other => bail!("{other:x?}, expected MMIO"),
    }
    setting.comes_to(&[Outcome::Read(b"mmio".into())])
}

/// The attribute decides, and the C-bit is a bit like any other.
fn never_mismatches(model: &ModelHypervisor) -> anyhow::Result<()> {
    let mut setting = Setting::new(model, VmType::SwProtected)?;
    for state in [Private, Shared, Private] {
        setting.vm.set_attribute(setting.range, state)?;
        for access in [Shared, Private] {
            setting.script.push(Action::write(setting.vm.address(BASE, access), [state as u8; 8]));
        }
        setting.comes_to(&[Outcome::Written, Outcome::Written])?;
    }
    let mut bytes = [0; 8];
    read_private(&setting.private, 0, &mut bytes)?;
    expect::equal("the private side", bytes, [Private as u8; 8])?;
    setting.vm.set_attribute(setting.range, Shared)?;
    setting.script.push(Action::read(BASE, 8));
    setting.comes_to(&[Outcome::Read(vec![Shared as u8; 8])])
}

fn never_private(model: &ModelHypervisor) -> anyhow::Result<()> {
    for vm_type in [VmType::Default, VmType::Sev, VmType::SevEs] {
        let vm = model.create(vm_type)?;
        let range = GpaRange::new(BASE, SIZE)?;
        let shared = Some(Slice { backing: Arc::new(SharedMemory::new("model", SIZE)?), offset: 0 });
        let private = Some(Slice { backing: vm.create_guest_memfd(SIZE)?, offset: 0 });
        let both = Region { range, shared, private };
        let refused = vm.add_region(0, &both).err().and_then(|error| error.errno());
        expect::equal("the error of a region with private memory", refused, Some(crate::EINVAL))?;
        let refused = vm.set_attribute(range, Private).err().and_then(|error| error.errno());
        expect::equal("the error of a private attribute", refused, Some(crate::EINVAL))?;
        vm.add_region(0, &Region { private: None, ..both })?;
        let script = vm.script(0);
        for access in [Shared, Private] {
            script.push(Action::write(vm.address(BASE, access), *b"word"));
        }
        let mut vcpu = vm.create_vcpu(0)?;
        ensure!(matches!(vcpu.run()?, Exit::Halt), "an access leaves");
        expect::equal("what the guest did", script.take_outcomes(), vec![Outcome::Written, Outcome::Written])?;
    }
    Ok(())
}

/// What the guest asks for is what the VMM sees, with nothing of the address's own bits, and the answers are those that
/// its hardware has.
fn answers(model: &ModelHypervisor, vm_type: VmType, again: Answer) -> anyhow::Result<()> {
    let replies = [
        (Some(MapGpaRangeReply::Done), Answer::Granted),
        (None, Answer::Refused),
        (Some(MapGpaRangeReply::Invalid), Answer::Refused),
        (Some(MapGpaRangeReply::Again), again),
    ];
    let mut setting = Setting::new(model, vm_type)?;
    for (reply, answer) in replies {
        setting.script.push(setting.vm.announcement(setting.range, Shared));
        let Exit::MapGpaRange(request) = setting.vcpu.run()? else { bail!("no request") };
        let seen = [request.gpa, request.pages, request.attributes];
        expect::equal("the request", seen, [BASE, setting.range.pages(), 0])?;
        if let Some(reply) = reply {
            request.reply(reply);
        }
        setting.comes_to(&[Outcome::Answered(answer)])?;
    }
    Ok(())
}

fn pieces(model: &ModelHypervisor) -> anyhow::Result<()> {
    let mut setting = Setting::new(model, VmType::Tdx)?;
    let range = GpaRange::new(BASE + PAGE, 1025 * PAGE)?;
    let expected = [[BASE + PAGE, 512, 0], [BASE + 513 * PAGE, 512, 0], [BASE + 1025 * PAGE, 1, 0]];
    for stop in [3, 1, 0] {
        setting.script.push(setting.vm.announcement(range, Shared));
        for (number, expected) in expected.iter().enumerate().take(stop + 1) {
            let Exit::MapGpaRange(request) = setting.vcpu.run()? else { bail!("no request") };
            expect::equal("a piece", [request.gpa, request.pages, request.attributes], *expected)?;
            request.reply(if number == stop { MapGpaRangeReply::Again } else { MapGpaRangeReply::Done });
        }
        let retry = |[gpa, ..]: &[u64; 3]| Answer::Retry { gpa: setting.vm.address(*gpa, Shared).gpa };
        let answer = expected.get(stop).map_or(Answer::Granted, retry);
        setting.comes_to(&[Outcome::Answered(answer)])?;
    }
    Ok(())
}

/// What is not filtered stays inside; what is, is refused unless the VMM says otherwise.
fn msrs(model: &ModelHypervisor) -> anyhow::Result<()> {
    let mut setting = Setting::new(model, VmType::SwProtected)?;
    let filter = |first, reads| hypervisor::MsrFilter { first, count: 2, reads };
    setting.vm.filter_msrs(&[filter(0x10, true), filter(0x20, false)])?;
    let (read, write) = (|index| Action::ReadMsr { index }, |index| Action::WriteMsr { index, value: 7 });
    setting.script.extend([write(0x12), read(0x12), read(0x20), write(0x11), write(0x21), read(0x11), read(0x10)]);
    setting.script.push(Action::PortWrite { port: 0x3f8, data: vec![b'u'] });
    for accept in [true, false] {
        let Exit::MsrWrite { value: 7, index: 0x11 | 0x21 } = setting.vcpu.run()? else { bail!("no write") };
        if accept {
            setting.vcpu.accept_msr_write();
        }
    }
    for index in [0x11, 0x10] {
        let Exit::MsrRead(exit) = setting.vcpu.run()? else { bail!("no read") };
        expect::equal("the MSR", exit.index, index)?;
        if index == 0x11 {
            exit.reply(9);
        }
    }
    match setting.vcpu.run()? {
        Exit::IoOut { port, data } => expect::equal("the port", (port, data), (0x3f8, b"u".as_slice()))?,
        other => bail!("{other:x?}, expected a write to a port"),
    }
    setting.comes_to(&[
        Outcome::MsrWritten,
        Outcome::MsrRead(7),
        Outcome::MsrRead(0),
        Outcome::MsrWritten,
        Outcome::GeneralProtection,
        Outcome::MsrRead(9),
        Outcome::GeneralProtection,
        Outcome::PortWritten,
    ])
}
