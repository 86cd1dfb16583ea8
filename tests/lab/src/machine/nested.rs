//! The nested host: a machine with AMD's SVM that QEMU emulates, running the lab's kernel.
//!
//! It starts in two to three seconds for each job and has this machine's files, read-only, as the lower layer of its
//! root. The job's words and the exit status travel through a folder that only this run has; output travels over
//! virtio-serial, up to a mark. When the marks are there, or the time limit is over, or QEMU ended, QEMU is killed.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::emulator::{self, Emulator};
use super::qemu::{self, Channel, Configuration, Share};
use super::script::{self, Connection};
use super::stream::{End, Passage};
use super::terminal::{InputEnd, Raw, pass_keys};
use super::{Job, OUTPUT_CLOSED, TIMED_OUT, host_memory, live, report_time_limit};
use crate::cache::Cache;
use crate::cpio::Archive;
use crate::interrupt::{Cleanup, on_interrupt};
use crate::kernel::{self, tail};
use crate::options::Options;
use crate::packages;
use crate::process::Family;

mod console;

const INIT: &[u8] = include_bytes!("../../nested_host/init");

/// Debian's statically linked busybox, of which the nested host's init is made.
const BUSYBOX: &str = "busybox-static";

/// Everything that a nested host starts from.
#[derive(Debug)]
pub struct NestedHost {
    emulator: Emulator,
    kernel: PathBuf,
    initramfs: Vec<u8>,
    memory_mib: u64,
    live: Vec<PathBuf>,
    verbose: bool,
}

/// What ended a run.
#[derive(Debug)]
enum Event {
    /// The command is about to get the terminal.
    Ready,
    /// A stream ended, with its mark or without.
    Stream(io::Result<End>),
    /// The user does not want to go on.
    Escape,
}

impl NestedHost {
    /// Makes everything ready: QEMU, the kernel, busybox.
    pub fn prepare(options: &Options, cache: &Cache) -> Result<Self> {
        let kernel = kernel::prepare(options, cache)?;
        let busybox = packages::fetch_deb(options, cache, BUSYBOX)?;
        let busybox = busybox_program(&busybox)?;
        Ok(Self {
            // Last: by now, apt has the lists that tell where a newer one could be.
            emulator: Emulator::prepare(options, cache)?,
            kernel,
            initramfs: initramfs(&busybox),
            memory_mib: host_memory::for_nested_host()?,
            live: live::folders(),
            verbose: options.verbose,
        })
    }

    /// Whether [`Self::prepare`] would find everything here.
    pub fn is_ready(cache: &Cache) -> Result<bool> {
        Ok(Emulator::is_ready(cache) && kernel::is_ready(cache)? && packages::is_cached(cache, BUSYBOX))
    }

    /// The kernel's image.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// Runs a job. Its output folder exists and is an absolute path.
    pub fn run(&self, job: &Job) -> Result<i32> {
        let deadline = Instant::now() + job.time_limit;
        let connection = script::connection(job.terminal)?;
        let folder = RunFolder::create()?;
        let mark = mark()?;
        let control = folder.path().join("control");
        fs::create_dir(&control)
            .and_then(|()| fs::write(folder.path().join("initramfs"), &self.initramfs))
            .with_context(|| format!("cannot write into {}", folder.path().display()))?;
        let here = std::env::current_dir().context("cannot tell the current folder")?;
        for (name, content) in [
            ("settings", script::settings(job, connection, &self.live, &mark)?),
            ("run", script::command(job, &here, |name| std::env::var_os(name))?),
        ] {
            fs::write(control.join(name), content)
                .with_context(|| format!("cannot write into {}", control.display()))?;
        }

        let console = folder.path().join("console");
        let names: &[&'static str] = match connection {
            Connection::Separate => &["stdout", "stderr"],
            Connection::Merged => &["stdout"],
            Connection::Terminal { .. } => &[qemu::TERMINAL],
        };
        let mut sockets = Vec::new();
        let mut channels = Vec::new();
        let mut inherited: Vec<OwnedFd> = Vec::new();
        for &name in names {
            let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
            channels.push(Channel { name, socket: theirs.as_raw_fd() });
            sockets.push((name, ours));
            inherited.push(theirs.into());
        }
        let configuration = Configuration {
            kernel: &self.kernel,
            initramfs: &folder.path().join("initramfs"),
            console: &console,
            memory_mib: self.memory_mib,
            shares: &[
                Share { tag: "root", folder: Path::new("/"), writable: false },
                Share { tag: "control", folder: &control, writable: true },
                Share { tag: "out", folder: &job.out, writable: true },
            ],
            channels: &channels,
            verbose: self.verbose,
        };
        let qemu_log = folder.path().join("qemu");
        let log = fs::File::create(&qemu_log).with_context(|| format!("cannot create {}", qemu_log.display()))?;
        let mut command = configuration.command(&self.emulator);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let qemu =
            Family::start(&mut command, inherited).with_context(|| format!("cannot run {}", emulator::PROGRAM))?;
        drop(command); // with it go the lab's copies of QEMU's ends of the sockets
        let _console = self.verbose.then(|| console::follow(&console));

        let interactive = matches!(connection, Connection::Terminal { .. });
        let ending = watch(qemu, sockets, deadline, mark.as_bytes(), interactive)?;
        match ending {
            Ending::Finished => {}
            Ending::TimedOut => {
                report_time_limit(job.time_limit);
                return Ok(TIMED_OUT);
            }
            Ending::OutputClosed => return Ok(OUTPUT_CLOSED),
            Ending::Escaped => {
                eprintln!("lab: ended by Ctrl-]");
                return Ok(130);
            }
            Ending::Died => {
                let words = last_words(&console, &qemu_log);
                let words = words.strip_prefix("; ").unwrap_or("neither QEMU nor its console says why").to_owned();
                bail!("the nested host ended before the command did: {words}");
            }
        }
        let status = fs::read_to_string(control.join("status")).unwrap_or_default();
        match status.trim().parse() {
            Ok(status) => Ok(status),
            Err(_) => bail!("the nested host told no exit status{}", last_words(&console, &qemu_log)),
        }
    }
}

/// How a run ended, once QEMU is gone and all output is passed on.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Finished,
    Died,
    TimedOut,
    OutputClosed,
    Escaped,
}

/// Passes input and output on until the run ends, and ends QEMU.
fn watch(
    mut qemu: Family,
    sockets: Vec<(&'static str, UnixStream)>,
    deadline: Instant,
    mark: &[u8],
    interactive: bool,
) -> Result<Ending> {
    let (sender, receiver) = mpsc::channel();
    let (over, closes_over) = io::pipe().context("cannot make a pipe")?;
    let over = OwnedFd::from(over);
    let mut keys = match sockets.first() {
        Some((_, socket)) if interactive => Some(socket.try_clone().context("cannot copy a socket")?),
        _ => None,
    };
    std::thread::scope(|scope| {
        let mut waiting = sockets.len();
        for (name, socket) in sockets {
            let sender = sender.clone();
            scope.spawn(move || pass_output(name, socket, mark, &sender));
        }
        let mut raw = None;
        let mut wait = || loop {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                // Until now Ctrl-C ended the lab, and keys waited.
                Ok(Event::Ready) => {
                    raw = Some(Raw::enter()?);
                    if let Some(keys) = keys.take() {
                        let (sender, over) = (sender.clone(), &over);
                        scope.spawn(move || {
                            if let Ok(InputEnd::Escape) = pass_keys(keys, over) {
                                let _ = sender.send(Event::Escape); // nobody listens once the run is over
                            }
                        });
                    }
                }
                Ok(Event::Stream(Ok(End::Marked))) if waiting > 1 => waiting -= 1,
                Ok(Event::Stream(Ok(End::Marked))) => return Ok(Ending::Finished),
                Ok(Event::Stream(Ok(End::Closed))) => return Ok(Ending::Died),
                Ok(Event::Stream(Err(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Ending::OutputClosed);
                }
                Ok(Event::Stream(Err(error))) => {
                    return Err(error).context("cannot pass on the output of the nested host");
                }
                Ok(Event::Escape) => return Ok(Ending::Escaped),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(Ending::TimedOut),
            }
        };
        let ending = wait();
        // The sockets close with QEMU, which ends the threads when they have passed on the rest.
        qemu.kill();
        drop(closes_over);
        drop(raw);
        ending
    })
}

fn pass_output(name: &str, socket: UnixStream, mark: &[u8], sender: &Sender<Event>) {
    let end = match name {
        "stderr" => Passage::new(socket, io::stderr().lock(), mark).pass_on(),
        qemu::TERMINAL => {
            let mut passage = Passage::new(socket, io::stdout().lock(), mark);
            match passage.pass_on() {
                Ok(End::Marked) => {
                    let _ = sender.send(Event::Ready);
                    passage.pass_on()
                }
                end => end,
            }
        }
        _ => Passage::new(socket, io::stdout().lock(), mark).pass_on(),
    };
    let _ = sender.send(Event::Stream(end)); // nobody listens once the run is over
}

/// The end of the kernel's console and what QEMU said, for an error.
fn last_words(console: &Path, qemu_log: &Path) -> String {
    let mut words = String::new();
    for (title, path) in [("QEMU said", qemu_log), ("the end of its console", console)] {
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // QEMU tells at every start what its EPYC lacks.
        let text: Vec<&str> =
            text.lines().filter(|line| !line.contains("TCG doesn't support requested feature")).collect();
        let text = text.join("\n");
        if !text.trim().is_empty() {
            words.push_str(&format!("; {title}:\n{}", tail(text.trim_end(), 30)));
        }
    }
    words
}

fn busybox_program(package: &Path) -> Result<Vec<u8>> {
    // Debian 13 has /bin merged into /usr/bin, also inside packages.
    let path = ["bin/busybox", "usr/bin/busybox"].iter().map(|path| package.join(path)).find(|path| path.is_file());
    let path = path.with_context(|| format!("the package {BUSYBOX} in {} has no busybox", package.display()))?;
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn initramfs(busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.directory("dev", 0o755);
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.directory("bin", 0o755);
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("init", 0o755, INIT);
    archive.finish()
}

/// What the streams of this run end with: nothing that a program prints by chance.
fn mark() -> Result<String> {
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut random))
        .context("cannot read /dev/urandom")?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("lab-end-{digits}"))
}

/// A folder for one run, gone afterwards.
#[derive(Debug)]
struct RunFolder {
    folder: TempDir,
    _cleanup: Cleanup,
}

impl RunFolder {
    fn create() -> Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("umbra-lab-").tempdir().context("cannot create a temporary folder")?;
        let doomed = folder.path().to_path_buf();
        let cleanup = on_interrupt(move || drop(fs::remove_dir_all(doomed)));
        Ok(Self { folder, _cleanup: cleanup })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_of_two_runs_differ() {
        let first = mark().unwrap();
        assert_eq!(first.len(), 40);
        assert_ne!(first, mark().unwrap());
    }

    #[test]
    fn an_error_has_the_last_words_that_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let (console, log) = (folder.path().join("console"), folder.path().join("qemu"));
        assert_eq!(last_words(&console, &log), "");
        fs::write(&console, "booting\r\nKernel panic\r\n").unwrap();
        fs::write(&log, "qemu: warning: TCG doesn't support requested feature: X\n").unwrap();
        assert_eq!(last_words(&console, &log), "; the end of its console:\nbooting\nKernel panic");
    }
}
