//! The two hypervisors that contracts run on, each with a guest of its own.

use std::sync::Arc;

use hypervisor::faults::Faults;
use hypervisor::kvm::KvmHypervisor;
use hypervisor::model::{ModelHypervisor, ModelVm};
use hypervisor::{Capability, Hypervisor, Vm, VmType};

use crate::guest::{Guest, ScriptedGuest, X86Guest};
use crate::requirement::{Unavailable, require, require_caps};

/// A hypervisor.
#[derive(Debug)]
pub enum Backend {
    /// This host's KVM.
    Kvm(KvmHypervisor),
    /// The model.
    Model(ModelHypervisor),
}

/// A VM, and what it takes to put a guest into it.
pub struct TestVm {
    vm: Arc<dyn Vm>,
    maker: Maker,
}

enum Maker {
    X86 { amd: bool },
    Scripted(Arc<ModelVm>),
}

impl Backend {
    /// KVM.
    ///
    /// # Errors
    /// A host without it.
    pub fn kvm() -> Result<Self, Unavailable> {
        require_caps(&[]).map(Self::Kvm)
    }

    /// The model of a host that has everything.
    pub fn model() -> Self {
        Self::Model(ModelHypervisor::new())
    }

    /// The hypervisor as what it is to a VMM.
    pub fn hypervisor(&self) -> &dyn Hypervisor {
        match self {
            Self::Kvm(kvm) => kvm,
            Self::Model(model) => model,
        }
    }

    /// The failures ordered for it.
    pub fn faults(&self) -> &Faults {
        match self {
            Self::Kvm(kvm) => kvm.faults(),
            Self::Model(model) => model.faults(),
        }
    }

    /// Refuses a host that lacks anything in `needed`.
    ///
    /// # Errors
    /// The first that it lacks.
    pub fn require(&self, needed: &[Capability]) -> Result<(), Unavailable> {
        require(self.hypervisor().caps(), needed)
    }

    /// A VM of this type.
    ///
    /// # Errors
    /// [`Unavailable`] on a host that lacks it.
    pub fn create_vm(&self, vm_type: VmType) -> anyhow::Result<TestVm> {
        self.require(&[Capability::VmType(vm_type)])?;
        Ok(match self {
            Self::Kvm(kvm) => {
                TestVm { vm: kvm.create_vm(vm_type)?, maker: Maker::X86 { amd: kvm.caps().amd_processor } }
            }
            Self::Model(model) => {
                let vm = model.create(vm_type)?;
                TestVm { vm: vm.clone(), maker: Maker::Scripted(vm) }
            }
        })
    }

    /// A VM whose pages can be private, on any processor.
    ///
    /// # Errors
    /// [`Unavailable`] on a host that has none.
    pub fn create_private_vm(&self) -> anyhow::Result<TestVm> {
        self.require(&[
            Capability::UserMemory2,
            Capability::GuestMemfd,
            Capability::MemoryAttributes,
            Capability::MemoryFaultInfo,
        ])?;
        self.create_vm(VmType::SwProtected)
    }
}

impl TestVm {
    /// The VM as what it is to a VMM.
    pub fn vm(&self) -> &Arc<dyn Vm> {
        &self.vm
    }

    /// Puts guest number `id` into it, with vCPU `id`. On KVM its code takes slot `slot`, and 8 KiB of addresses
    /// above 3.25 GiB.
    ///
    /// # Errors
    /// A slot in use.
    pub fn guest(&self, slot: u32, id: u8) -> anyhow::Result<Box<dyn Guest>> {
        Ok(match &self.maker {
            Maker::X86 { amd } => Box::new(X86Guest::new(&*self.vm, slot, id, *amd)?),
            Maker::Scripted(vm) => Box::new(ScriptedGuest::new(vm, id)?),
        })
    }
}
