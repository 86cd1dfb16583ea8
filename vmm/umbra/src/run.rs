//! `umbra run`: boot a guest and run it until it powers off, serve the API, or both.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use hypervisor::kvm::KvmHypervisor;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use umbra_api::controller::operations::BootError;
use umbra_api::host::KvmHost;
use umbra_api::server::Server;
use umbra_api::types::{
    BalloonConfig, ConsoleConfig, CpusConfig, DiskConfig, MemoryConfig, NetConfig, PayloadConfig, PlatformConfig,
    PolicyConfig, RngConfig, SerialConfig, VmConfig, VsockConfig,
};
use umbra_api::{ApiError, Controller, Settings};
use vmm::events::EventMonitor;

use crate::new_file::NewFile;
use crate::options;

/// Boot a Linux kernel and run it until it powers off; with --api-socket, serve the REST API.
#[derive(clap::Args)]
#[command(after_help = "\
Keys:
  On a terminal, Ctrl-A x ends the machine, and Ctrl-A Ctrl-A sends one Ctrl-A.

Signals:
  TERM, INT and HUP end the machine; USR1 writes its memory statistics to the event monitor.

Exit status:
  0  the guest powered off, or the operator ended it: by a signal, a key or the API
  1  the machine could not be built or could not go on, was reset and could not be built anew, or the API could not be served
  2  a command line that makes no sense; nothing was done
  A guest that resets or crashes is booted anew, and ends nothing.

Examples:
  umbra run --kernel /boot/vmlinuz --initramfs initramfs.cpio --cmdline 'console=ttyS0' \\
      --memory size=512M,unmappable=on
  umbra run --api-socket /run/umbra.sock     wait for umbra ctl create")]
pub struct Args {
    /// The kernel: an x86-64 Linux vmlinuz (bzImage) or vmlinux. Without one, the API creates the machine.
    #[arg(long, value_name = "PATH", required_unless_present = "api_socket")]
    kernel: Option<PathBuf>,
    /// The initramfs.
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "console=ttyS0")]
    cmdline: String,
    /// Processors.
    #[arg(long, value_name = "boot=N", default_value = "boot=1", requires = "kernel", value_parser = options::cpus)]
    cpus: CpusConfig,
    /// Memory: its size, whether no process on the host may be able to map it, and how much at the end of low RAM is
    /// reserved for conversions of the operator's.
    #[arg(
        long,
        value_name = "size=SIZE[,unmappable=on|off][,window=SIZE]",
        default_value = "size=512M",
        requires = "kernel",
        value_parser = options::memory
    )]
    memory: MemoryConfig,
    /// A disk, from a raw image or a block device; can be given several times.
    #[arg(
        long,
        value_name = "path=PATH[,readonly=on|off][,num_queues=N][,queue_size=N][,id=ID][,serial=TEXT]",
        num_args = 1..,
        requires = "kernel",
        value_parser = options::disk
    )]
    disk: Vec<DiskConfig>,
    /// A network device on a tap; can be given several times.
    #[arg(
        long,
        value_name = "tap=NAME[,mac=MAC][,ip=IP][,mask=MASK][,mtu=N][,num_queues=N][,queue_size=N][,id=ID]",
        num_args = 1..,
        requires = "kernel",
        value_parser = options::net
    )]
    net: Vec<NetConfig>,
    /// The socket device, with a unix socket on the host's side.
    #[arg(long, value_name = "cid=CID,socket=PATH[,id=ID]", requires = "kernel", value_parser = options::vsock)]
    vsock: Option<VsockConfig>,
    /// The serial console.
    #[arg(long, value_name = "off|tty|file=PATH|null", default_value = "tty", requires = "kernel", value_parser = options::serial)]
    serial: SerialConfig,
    /// The virtio console.
    #[arg(long, value_name = "off|tty|file=PATH|null", default_value = "off", requires = "kernel", value_parser = options::console)]
    console: ConsoleConfig,
    /// Where the guest's random numbers come from.
    #[arg(long, value_name = "src=PATH", default_value = "src=/dev/urandom", requires = "kernel", value_parser = options::rng)]
    rng: RngConfig,
    /// A balloon; only with memory that is not unmappable.
    #[arg(
        long,
        value_name = "size=SIZE[,deflate_on_oom=on|off][,free_page_reporting=on|off]",
        requires = "kernel",
        value_parser = options::balloon
    )]
    balloon: Option<BalloonConfig>,
    /// What makes memory unmappable; auto is the strongest that this host offers with unmappable=on, and none without.
    /// access_platform=on has devices offer VIRTIO_F_ACCESS_PLATFORM where guests could do without, as for swiotlb=force.
    #[arg(
        long,
        value_name = "isolation=auto|none|software[,access_platform=on|off]",
        default_value = "isolation=auto",
        requires = "kernel",
        value_parser = options::platform
    )]
    platform: PlatformConfig,
    /// What conversions of guest memory may do, by what asks for them: an announcement of the guest's (explicit), an access
    /// that contradicts a page's state (implicit), the operator (host). N/s allows N each second, and lets the rest wait.
    #[arg(
        long,
        value_name = "[explicit|implicit|host]=allow|refuse|N/s,...",
        default_value = "explicit=allow,implicit=allow,host=allow",
        requires = "kernel",
        value_parser = options::conversions
    )]
    conversions: PolicyConfig,
    /// Write what happens to the machine as JSON objects, in Cloud Hypervisor's format. A named pipe may get its reader later:
    /// up to 1 MiB waits for it.
    #[arg(long, value_name = "path=PATH", value_parser = options::event_monitor)]
    event_monitor: Option<PathBuf>,
    /// Serve the REST API on a unix socket here, to this user and root.
    #[arg(long, value_name = "PATH", value_parser = options::api_socket)]
    api_socket: Option<PathBuf>,
    /// Go on serving the API after the guest has powered off, or was reset and can't be built anew.
    #[arg(long, requires = "api_socket")]
    no_shutdown: bool,
}

impl Args {
    /// The machine, if the command line has one.
    fn machine(&self) -> Option<VmConfig> {
        let kernel = self.kernel.clone()?;
        let initramfs = self.initramfs.clone();
        let payload = PayloadConfig {
            kernel: Some(kernel),
            initramfs,
            cmdline: Some(self.cmdline.clone()),
            ..Default::default()
        };
        let mut config = VmConfig::new(payload);
        config.cpus = Some(self.cpus.clone());
        config.memory = Some(self.memory.clone());
        config.disks = (!self.disk.is_empty()).then(|| self.disk.clone());
        config.net = (!self.net.is_empty()).then(|| self.net.clone());
        config.vsock = self.vsock.clone();
        config.serial = Some(self.serial.clone());
        config.console = Some(self.console.clone());
        config.rng = Some(self.rng.clone());
        config.balloon = self.balloon.clone();
        config.platform = Some(self.platform.clone());
        config.conversions = Some(self.conversions.clone());
        Some(config)
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Caught from here on, acted upon once there is somebody to tell.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("cannot handle signals")?;
    let host = Arc::new(KvmHost::new(KvmHypervisor::open()?));
    let events = Arc::new(EventMonitor::new());
    let file = match &args.event_monitor {
        Some(path) => {
            // What comes before it is known that there is something to tell of.
            events.hold();
            Some((&**path, NewFile::open(path).with_context(|| cannot_create(path))?))
        }
        None => None,
    };
    events.emit("vmm", "starting", ());
    let (controller, ended) = Controller::new(host, events.clone(), Settings { keep: args.no_shutdown });
    handle_signals(signals, &controller)?;
    let result = serve(args, &controller, file).and_then(|server| {
        // Until the API, a signal, the guest or a failure ends it.
        let result = ended.recv().unwrap_or(Ok(()));
        controller.close();
        if let Some(server) = server {
            server.end();
        }
        Ok(result?)
    });
    controller.close();
    result.map(|()| ExitCode::SUCCESS)
}

/// Creates and boots the machine of the command line, and serves the API, as far as either is asked for.
fn serve(args: &Args, controller: &Arc<Controller>, file: Option<(&Path, NewFile)>) -> anyhow::Result<Option<Server>> {
    let keep = || match file {
        Some((path, file)) => {
            controller.events().write_to(file.keep().with_context(|| cannot_create(path))?);
            anyhow::Ok(())
        }
        None => Ok(()),
    };
    let config = args.machine();
    let has_machine = config.is_some();
    config.map_or(Ok(()), |config| controller.create(config)).map_err(plain)?;
    // The socket first, since a machine may take the terminal. Who connects waits until the machine runs: nobody can boot it,
    // or delete it, before this does.
    let server = args.api_socket.as_ref().map(|path| Server::hold(path, controller.clone())).transpose()?;
    // Its document took megabytes to make, in small pieces.
    crate::allocator::trim();
    if has_machine {
        controller.boot(keep).map_err(|error| match error {
            BootError::Machine(error) => error.into(),
            BootError::Order(error) => plain(error),
        })??;
    } else {
        keep()?;
    }
    server.iter().for_each(Server::open);
    Ok(server)
}

fn cannot_create(path: &Path) -> String {
    format!("cannot create event monitor {}", path.display())
}

/// An error of the API's as one of the command line's.
fn plain(error: ApiError) -> anyhow::Error {
    anyhow!("{}", error.chain.join(": "))
}

fn handle_signals(mut signals: Signals, controller: &Arc<Controller>) -> anyhow::Result<()> {
    let controller = Arc::downgrade(controller);
    let body = move || {
        for signal in signals.forever() {
            let Some(controller) = controller.upgrade() else { return };
            match signal {
                SIGUSR1 => {
                    if let Some(statistics) = controller.statistics() {
                        controller.events().emit("memory", "stats", statistics);
                    }
                }
                _ => controller.end(),
            }
        }
    };
    if std::thread::Builder::new().name("signals".into()).spawn(body).is_err() {
        bail!("cannot start a thread");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use clap::Parser;
    use umbra_api::client::Client;
    use umbra_api::host::{Built, Host};
    use umbra_api::model::ModelHost;
    use vmm::console::Output;

    use super::*;
    use crate::Cli;

    /// The model; before it builds a machine, a client asks something of the API here.
    struct Asked {
        client: Client,
        /// Whether the client was left waiting, for each machine.
        waited: Mutex<Vec<bool>>,
    }

    impl Host for Asked {
        fn check(&self, config: &vmm::VmConfig) -> vmm::Result<()> {
            ModelHost::default().check(config)
        }

        fn build(
            &self,
            config: &vmm::VmConfig,
            output: &Output,
            events: &Arc<EventMonitor>,
        ) -> vmm::Result<Box<dyn Built>> {
            // The socket is there, and takes connections. Nothing about this request needs the machine.
            let answer = self.client.call("vmm.ping", &[], None, "*/*");
            self.waited.lock().unwrap().push(answer.is_err_and(|error| error.is_timeout()));
            ModelHost::default().build(config, output, events)
        }
    }

    #[test]
    fn the_machine_of_the_command_line_is_booted_before_a_client_is_heard() {
        for (kernel, fine) in [("/proc/self/exe", true), ("/no/such/kernel", false)] {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("api");
            let client = Client::new(&socket);
            let host = Arc::new(Asked { client: client.patient(Duration::from_millis(300)), waited: Mutex::default() });
            let (controller, _ended) =
                Controller::new(host.clone(), Arc::new(EventMonitor::new()), Settings::default());
            let line = ["umbra", "run", "--kernel", kernel, "--serial", "null", "--memory", "size=16M", "--api-socket"];
            let cli = Cli::try_parse_from(line.into_iter().chain([socket.to_str().unwrap()])).ok().unwrap();
            let crate::Command::Run(args) = cli.command else { panic!("it is run") };
            let result = serve(&args, &controller, None);
            assert_eq!(*host.waited.lock().unwrap(), [true]);
            assert_eq!(result.is_ok(), fine);
            if fine {
                let info = client.call("vm.info", &[], None, "*/*").unwrap();
                assert!(String::from_utf8(info.body).unwrap().contains("Running"));
                client.call("vm.boot", &[], None, "*/*").unwrap_err();
            }
            drop(result);
            controller.close();
            assert!(!socket.exists());
        }
    }

    #[test]
    fn options_of_a_machine_need_its_kernel() {
        let parse =
            |options: &[&str]| Cli::try_parse_from([&["umbra", "run", "--api-socket", "/s"][..], options].concat());
        let options = [
            ("--initramfs", "/i"),
            ("--cmdline", "quiet"),
            ("--cpus", "boot=2"),
            ("--memory", "size=1G"),
            ("--disk", "path=/d"),
            ("--net", "tap=t"),
            ("--vsock", "cid=3,socket=/v"),
            ("--serial", "null"),
            ("--console", "null"),
            ("--rng", "src=/r"),
            ("--balloon", "size=1M"),
            ("--platform", "isolation=none"),
            ("--conversions", "host=refuse"),
        ];
        for (option, value) in options {
            let error = parse(&[option, value]).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("--kernel"), "{option}: {error}");
            assert!(parse(&["--kernel", "/k", option, value]).is_ok(), "{option}");
        }
        assert!(parse(&[]).is_ok() && parse(&["--no-shutdown", "--event-monitor", "path=/e"]).is_ok());
        assert!(parse(&["--kernel", "/k"]).is_ok());
    }
}
