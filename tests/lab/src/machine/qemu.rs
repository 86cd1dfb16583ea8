//! QEMU's command line for a nested host.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::Path;
use std::process::Command;

use super::emulator::Emulator;

/// An EPYC by emulation, with the virtualisation that KVM needs and room for the alias bit of shared memory.
const PROCESSOR: &str = "EPYC,+svm,+npt,phys-bits=48";

/// Two to run programs, and so guests; the first one has the kernel's work only. All of QEMU's processors write to the
/// flags of that one's virtualisation whenever they load floating-point registers, so no guest can run there (docs/lab.md).
const PROCESSORS: &str = "3";

/// A folder of this machine that is shared over 9p.
#[derive(Debug)]
pub struct Share<'a> {
    /// The tag that the nested host mounts it by.
    pub tag: &'static str,
    /// The folder.
    pub folder: &'a Path,
    /// Whether it can be written.
    pub writable: bool,
}

/// A stream between the lab and the nested host.
#[derive(Debug)]
pub struct Channel {
    /// The name of the port; hvc0 when it is the terminal.
    pub name: &'static str,
    /// QEMU's end of a socket pair, inherited under this number.
    pub socket: RawFd,
}

/// A nested host, as QEMU is to start it.
#[derive(Debug)]
pub struct Configuration<'a> {
    /// The kernel's image.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// The file for the kernel's console.
    pub console: &'a Path,
    /// Its memory.
    pub memory_mib: u64,
    /// Folders.
    pub shares: &'a [Share<'a>],
    /// Streams.
    pub channels: &'a [Channel],
    /// Whether the kernel tells everything on its console.
    pub verbose: bool,
}

/// The name of the channel that is a terminal.
pub const TERMINAL: &str = "hvc0";

impl Configuration<'_> {
    /// The command that starts it.
    pub fn command(&self, emulator: &Emulator) -> Command {
        let mut command = emulator.command();
        command.args(["-name", "umbra-lab", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", PROCESSORS]);
        command.arg("-m").arg(self.memory_mib.to_string());
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        let quiet = if self.verbose { "" } else { " quiet" };
        // A kernel that fails ends QEMU at once, so the lab notices. On a busy machine, the timer interrupt that it would
        // check for at its start can come too late for the check.
        // Linux refines its measure of the emulated TSC by more than the 250 ppm that KVM tolerates; a guest started after
        // that would have no working TSC deadline timer.
        command
            .arg("-append")
            .arg(format!("console=ttyS0 oops=panic panic=-1 no_timer_check kvm.tsc_tolerance_ppm=100000{quiet}"));
        command.arg("-serial").arg(option("file:", self.console));
        for Share { tag, folder, writable } in self.shares {
            let access = if *writable { "" } else { ",readonly=on" };
            let mut filesystem =
                option(&format!("local,id={tag},security_model=none,multidevs=remap{access},path="), folder);
            command.arg("-fsdev").arg(std::mem::take(&mut filesystem));
            command.arg("-device").arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
        }
        command.args(["-device", "virtio-serial-pci"]);
        for Channel { name, socket } in self.channels {
            command.arg("-chardev").arg(format!("socket,id={name},fd={socket}"));
            let kind = if *name == TERMINAL { "virtconsole" } else { "virtserialport" };
            command.arg("-device").arg(format!("{kind},chardev={name},name={name}"));
        }
        command
    }
}

/// An option that ends with a path. In QEMU's options, a comma stands for itself when it is doubled.
fn option(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    for (index, part) in path.as_os_str().as_encoded_bytes().split(|byte| *byte == b',').enumerate() {
        if index > 0 {
            text.push(",,");
        }
        text.push(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(part));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        assert_eq!(option("file:", Path::new("/a,b/c")), OsString::from("file:/a,,b/c"));
    }

    #[test]
    fn only_the_writable_shares_can_be_written() {
        let shares = [
            Share { tag: "root", folder: Path::new("/"), writable: false },
            Share { tag: "out", folder: Path::new("/out"), writable: true },
        ];
        let configuration = Configuration {
            kernel: Path::new("k"),
            initramfs: Path::new("i"),
            console: Path::new("c"),
            memory_mib: 2048,
            shares: &shares,
            channels: &[Channel { name: TERMINAL, socket: 5 }],
            verbose: false,
        };
        let command = configuration.command(&Emulator::installed());
        let arguments: Vec<&str> = command.get_args().filter_map(OsStr::to_str).collect();
        let filesystems: Vec<&&str> = arguments.iter().filter(|argument| argument.starts_with("local,")).collect();
        assert_eq!(filesystems.len(), 2);
        assert!(filesystems[0].contains("id=root") && filesystems[0].contains("readonly=on"));
        assert!(filesystems[1].contains("id=out") && !filesystems[1].contains("readonly"));
        assert!(arguments.contains(&"virtconsole,chardev=hvc0,name=hvc0"));
    }
}
