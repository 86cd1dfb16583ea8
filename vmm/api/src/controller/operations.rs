//! What can be asked of the machine.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use serde_json::json;
use vmm::console::Output;
use vmm::memory::conversion::Policy;

use super::life::{Ended, Run, Work, lock};
use super::{Controller, Vm, conflict, failed};
use crate::ApiError;
use crate::convert::{fill_in, is_fixed};
use crate::host::Guest;
use crate::types::{DiskConfig, NetConfig, PciDeviceInfo, PolicyConfig, VmConfig, VsockConfig};

impl Controller {
    /// Creates a machine, and does not boot it.
    ///
    /// # Errors
    /// There is one already, or the configuration can't be honoured.
    pub fn create(&self, mut config: VmConfig) -> Result<(), ApiError> {
        let mut machine = self.lock();
        if machine.is_some() {
            return Err(conflict("there is a machine already: delete it first with vm.delete"));
        }
        vmm::VmConfig::try_from(&config)?;
        fill_in(&mut config, &[]).map_err(no_random_numbers)?;
        let spec = vmm::VmConfig::try_from(&config)?;
        self.host.check(&spec).map_err(failed("this machine is not possible here"))?;
        let output = Arc::new(Output::new(spec.serial.clone()));
        *machine = Some(Vm { config, spec: Arc::new(Mutex::new(spec)), output, run: None, has_run: false });
        self.events.emit("vm", "created", ());
        Ok(())
    }

    /// Boots the machine. `built` is called once it is built, before it runs.
    ///
    /// # Errors
    /// There is none, it runs already, or it can't be built.
    pub fn boot<E>(self: &Arc<Self>, built: impl FnOnce() -> Result<(), E>) -> Result<Result<(), E>, BootError> {
        let mut machine = self.lock();
        let vm = machine.as_mut().ok_or_else(ApiError::not_created)?;
        if let Ok(guest) = vm.guest() {
            let paused = guest.is_paused();
            let how = if paused { "it is paused: resume it with vm.resume" } else { "it runs already" };
            return Err(ApiError::wrong_order(format!("the machine can't be booted: {how}")).into());
        }
        // One that is over.
        vm.end_run();
        let (end, keep) = (self.end.clone(), self.settings.keep);
        let ended = move |how: Ended| match how {
            Ended::Stopped(Ok(_)) | Ended::NotRebuilt(_) if keep => {}
            Ended::Stopped(result) => drop(end.send(result.map(drop))),
            Ended::NotRebuilt(error) => drop(end.send(Err(error))),
        };
        let work = Work {
            host: self.host.clone(),
            events: self.events.clone(),
            spec: vm.spec.clone(),
            output: vm.output.clone(),
            ended: Box::new(ended),
        };
        let ready = work.build().map_err(BootError::Machine)?;
        if let Err(error) = built() {
            return Ok(Err(error));
        }
        vm.run = Some(Run::start(ready, work).map_err(BootError::Machine)?);
        vm.has_run = true;
        Ok(Ok(()))
    }

    /// Ends the machine and forgets it. Fine where there is none.
    pub fn delete(&self) {
        if let Some(mut vm) = self.lock().take() {
            vm.end_run();
            self.events.emit("vm", "deleted", ());
        }
    }

    /// Ends the machine; its configuration stays.
    ///
    /// # Errors
    /// There is none, or it is not booted.
    pub fn shutdown(&self) -> Result<(), ApiError> {
        let mut machine = self.lock();
        let vm = machine.as_mut().ok_or_else(ApiError::not_created)?;
        vm.guest()?;
        vm.end_run();
        Ok(())
    }

    /// Resets the machine.
    ///
    /// # Errors
    /// There is none, it is not booted, or it can't be built anew.
    pub fn reboot(&self) -> Result<(), ApiError> {
        let machine = self.lock();
        let vm = machine.as_ref().ok_or_else(ApiError::not_created)?;
        vm.guest()?;
        vm.run.as_ref().map_or(Ok(()), Run::reboot)
    }

    /// Lets the machine stand still.
    ///
    /// # Errors
    /// There is none, it is not booted, or it stands still already.
    pub fn pause(&self) -> Result<(), ApiError> {
        let machine = self.lock();
        let guest = machine.as_ref().ok_or_else(ApiError::not_created)?.guest()?;
        if guest.is_paused() {
            return Err(ApiError::wrong_order("the machine is paused already"));
        }
        self.events.emit("vm", "pausing", ());
        guest.pause().map_err(failed("the machine was not paused"))?;
        self.events.emit("vm", "paused", ());
        Ok(())
    }

    /// Lets the machine go on.
    ///
    /// # Errors
    /// There is none, it is not booted, or it does not stand still.
    pub fn resume(&self) -> Result<(), ApiError> {
        let machine = self.lock();
        let guest = machine.as_ref().ok_or_else(ApiError::not_created)?.guest()?;
        if !guest.is_paused() {
            return Err(ApiError::wrong_order("the machine is not paused"));
        }
        self.events.emit("vm", "resuming", ());
        guest.resume().map_err(failed("the machine was not resumed"))?;
        self.events.emit("vm", "resumed", ());
        Ok(())
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// There is no machine, or it is not booted.
    pub fn power_button(&self) -> Result<(), ApiError> {
        self.guest()?.power_button().map_err(failed("the power button was not pressed"))
    }

    /// Gives the machine's processors a non-maskable interrupt.
    ///
    /// # Errors
    /// There is no machine, or it is not booted.
    pub fn nmi(&self) -> Result<(), ApiError> {
        self.guest()?.nmi().map_err(failed("the interrupt was not given"))
    }

    /// Adds a disk: to the machine that runs, which tells where it is, or to the configuration of one that does not.
    ///
    /// # Errors
    /// There is no machine, or it does not take the disk.
    pub fn add_disk(&self, config: DiskConfig) -> Result<Option<PciDeviceInfo>, ApiError> {
        vmm::config::DiskConfig::try_from(&config)?;
        self.add(
            |vm| {
                vm.disks.get_or_insert_default().push(config);
                Ok(())
            },
            |vm| vm.disks.last().map(|disk| (disk.id.clone(), disk.clone())),
            |guest, disk| guest.add_disk(disk),
        )
    }

    /// Adds a network device, like [`Self::add_disk`].
    ///
    /// # Errors
    /// There is no machine, or it does not take the device.
    pub fn add_net(&self, config: NetConfig) -> Result<Option<PciDeviceInfo>, ApiError> {
        vmm::config::NetConfig::try_from(&config)?;
        self.add(
            |vm| {
                vm.net.get_or_insert_default().push(config);
                Ok(())
            },
            |vm| vm.nets.last().map(|net| (net.id.clone(), net.clone())),
            |guest, net| guest.add_net(net),
        )
    }

    /// Adds a socket device, like [`Self::add_disk`]. A machine has one at most.
    ///
    /// # Errors
    /// There is no machine, or it does not take the device.
    pub fn add_vsock(&self, config: VsockConfig) -> Result<Option<PciDeviceInfo>, ApiError> {
        vmm::config::VsockConfig::try_from(&config)?;
        self.add(
            |vm| match vm.vsock.replace(config) {
                None => Ok(()),
                Some(_) => {
                    Err(conflict("the machine has a socket device already: remove it first with vm.remove-device"))
                }
            },
            |vm| vm.vsock.as_ref().map(|vsock| (vsock.id.clone(), vsock.clone())),
            |guest, vsock| guest.add_vsock(vsock),
        )
    }

    /// Adds a device: `note` puts it into the configuration, `find` finds it in what is built of that, with its name, and
    /// `hot` gives it to the guest that runs.
    fn add<D>(
        &self,
        note: impl FnOnce(&mut VmConfig) -> Result<(), ApiError>,
        find: impl FnOnce(&vmm::VmConfig) -> Option<(Option<String>, D)>,
        hot: impl FnOnce(&dyn Guest, D) -> vmm::Result<PciDeviceInfo>,
    ) -> Result<Option<PciDeviceInfo>, ApiError> {
        let mut machine = self.lock();
        let vm = machine.as_mut().ok_or_else(ApiError::not_created)?;
        let mut config = vm.config.clone();
        note(&mut config)?;
        // It waits while the machine is built anew, which needs the specification: so it comes before that is locked.
        let guest = vm.guest().ok();
        let there = guest.iter().flat_map(|guest| guest.devices()).map(|device| device.id).collect::<Vec<_>>();
        fill_in(&mut config, &there).map_err(no_random_numbers)?;
        // The whole must still be a machine: names are unique, there is a slot for each device, and so on.
        let checked = vmm::VmConfig::try_from(&config).map_err(|error| match error.clashes {
            true => conflict(&error.to_string()),
            false => error.into(),
        })?;
        self.host.check(&checked).map_err(failed("the machine can't have this device"))?;
        let Some((id, device)) = find(&checked) else { return Ok(None) };
        // Held, so that a machine that is built anew meanwhile has what its guest was given.
        let mut spec = lock(&vm.spec);
        let added = guest.map(|guest| hot(&*guest, device).map_err(failed("the device was not added"))).transpose()?;
        *spec = checked;
        drop(spec);
        vm.config = config;
        self.events.emit("vm", "device-added", json!({ "id": id }));
        Ok(added)
    }

    /// Removes a device: asks the guest that runs to let go of it, and takes it out of the configuration. That a device is gone
    /// which a guest had is told by the machine, once it is.
    ///
    /// # Errors
    /// There is no machine, it has no such device, or it does not let go.
    pub fn remove_device(&self, id: &str) -> Result<(), ApiError> {
        let mut machine = self.lock();
        let vm = machine.as_mut().ok_or_else(ApiError::not_created)?;
        let guest = vm.guest().ok();
        let named = |other: &Option<String>| other.as_deref() == Some(id);
        let mut config = vm.config.clone();
        config.disks.iter_mut().for_each(|disks| disks.retain(|disk| !named(&disk.id)));
        config.net.iter_mut().for_each(|nets| nets.retain(|net| !named(&net.id)));
        config.vsock.take_if(|vsock| named(&vsock.id));
        let known = guest.as_ref().is_some_and(|guest| guest.devices().iter().any(|device| device.id == id));
        if !known && config == vm.config {
            let message = format!("the machine has no device {id:?}: vm.info lists those it has");
            return Err(ApiError::new(StatusCode::NOT_FOUND, message));
        }
        if is_fixed(id) {
            let kinds = "only disks, network devices and the socket device can be";
            return Err(ApiError::bad_request(format!("{id:?} can't be removed: {kinds}")));
        }
        let checked = vmm::VmConfig::try_from(&config)?;
        let mut spec = lock(&vm.spec);
        let asked = guest.filter(|_| known);
        if let Some(guest) = &asked {
            guest.remove_device(id).map_err(failed("the device was not removed"))?;
        }
        *spec = checked;
        drop(spec);
        vm.config = config;
        if asked.is_none() {
            self.events.emit("vm", "device-removed", json!({ "id": id }));
        }
        Ok(())
    }

    /// Asks the guest to give so many bytes back: now, if it runs, and when the machine is booted anew.
    ///
    /// # Errors
    /// There is no machine, it has no balloon, or no room for this one.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), ApiError> {
        let refused = || failed("the balloon was not changed");
        let mut machine = self.lock();
        let vm = machine.as_mut().ok_or_else(ApiError::not_created)?;
        let mut config = vm.config.clone();
        config.balloon.as_mut().ok_or(vmm::Error::NoBalloon).map_err(refused())?.size = bytes;
        let checked = vmm::VmConfig::try_from(&config)?;
        self.host.check(&checked).map_err(refused())?;
        // It waits while the machine is built anew, which needs the specification: so it comes before that is locked.
        let guest = vm.guest().ok();
        // Held, so that a machine that is built anew meanwhile has the size that its guest was told.
        let mut spec = lock(&vm.spec);
        self.events.emit("vm", "resizing", ());
        guest.map_or(Ok(()), |guest| guest.set_balloon(bytes)).map_err(refused())?;
        *spec = checked;
        drop(spec);
        vm.config = config;
        self.events.emit("vm", "resized", ());
        Ok(())
    }

    /// What conversions may do.
    ///
    /// # Errors
    /// There is no machine.
    pub fn policy(&self) -> Result<Policy, ApiError> {
        let machine = self.lock();
        let vm = machine.as_ref().ok_or_else(ApiError::not_created)?;
        Ok(lock(&vm.spec).conversions)
    }

    /// Changes what conversions may do, now and when the machine is booted anew.
    ///
    /// # Errors
    /// There is no machine, or a rule is none.
    pub fn set_policy(&self, change: &PolicyConfig) -> Result<Policy, ApiError> {
        let mut machine = self.lock();
        let vm = machine.as_mut().ok_or_else(ApiError::not_created)?;
        let mut spec = lock(&vm.spec);
        let policy = change.over(spec.conversions)?;
        spec.conversions = policy;
        drop(spec);
        vm.config.conversions = Some(policy.into());
        if let Ok(guest) = vm.guest() {
            guest.memory().set_policy(policy);
        }
        Ok(policy)
    }
}

fn no_random_numbers(error: std::io::Error) -> ApiError {
    ApiError::caused(StatusCode::INTERNAL_SERVER_ERROR, "a hardware address can't be made up", &error)
}

/// Why a machine was not booted.
#[derive(Debug)]
pub enum BootError {
    /// There is nothing to boot.
    Order(ApiError),
    /// The machine's own.
    Machine(vmm::Error),
}

impl From<ApiError> for BootError {
    fn from(error: ApiError) -> Self {
        Self::Order(error)
    }
}

impl From<BootError> for ApiError {
    fn from(error: BootError) -> Self {
        match error {
            BootError::Order(error) => error,
            BootError::Machine(error) => Self::from_machine("the machine was not booted", &error),
        }
    }
}
