//! The API through a client that is generated from its document, with the real `umbra` and Debian's kernel in unmappable
//! memory.
//!
//! The document is the one that the server serves. openapi-python-client (from PyPI) makes a typed client of it, and may not
//! have a reservation; then `life.py` leads a machine through its life with that client and nothing else. It fails if there is
//! an operation in the document that it did not call with success, or did not call at all where the document knows of errors
//! only. So whoever adds an operation adds it there.
//!
//! The generator lies in a folder that UMBRA_CLIENT_GENERATOR names, a Python environment; `cargo lab test` makes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use hypervisor::Hypervisor;
use kvm_tests::linux::{self, initramfs};
use kvm_tests::requirement::{Unavailable, require, require_caps};
use kvm_tests::trial::trial;
use kvm_tests::umbra::process::{Running, finish};
use libtest_mimic::Arguments;
use umbra_api::client::Client;

/// How long each of starting, generating and living may take.
const LIMIT: Duration = Duration::from_secs(900);
/// Names the folder with the generator.
const GENERATOR: &str = "UMBRA_CLIENT_GENERATOR";

/// The first process: tells of a disk that comes and goes, and that the power button was pushed, which ends it. Keys are read
/// as input events, type, code and value; what is pushed after the device was opened is kept.
const SCRIPT: &str = r#"
{
    until [ -e /dev/vda ]; do sleep 0.1; done
    say disk $(cat /sys/block/vda/size) $(cat /sys/block/vda/serial)
    while [ -e /dev/vda ]; do sleep 0.1; done
    say no disk
} &
exec 3</dev/input/event0
say up
set -- $(dd bs=24 count=1 <&3 2>/dev/null | od -An -tu2 -j16 -N6)
say pushed $*
"#;

fn main() -> ExitCode {
    let tests = vec![trial("a_generated_client_leads_a_machine_through_all_operations", lives)];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn generator() -> Result<PathBuf, Unavailable> {
    let path = std::env::var_os(GENERATOR).filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| {
        Unavailable::Needs(format!(
            "a Python environment with openapi-python-client in {GENERATOR}: `cargo lab test` makes one and sets it"
        ))
    })
}

fn lives() -> anyhow::Result<()> {
    let kvm = require_caps(&[])?;
    require(kvm.caps(), Isolation::Software.requirements())?;
    let (guest, python) = (linux::folder()?, generator()?.join("bin/python"));
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    fs::copy(guest.join("vmlinuz"), at("vmlinuz")).context("cannot copy the guest's kernel")?;
    fs::write(at("initramfs"), initramfs::build(&guest, &["virtio_blk", "evdev", "button"], &[], SCRIPT)?)?;
    fs::File::create(at("image"))?.set_len(8 << 20)?;

    let socket = at("api");
    let mut command = Command::new(kvm_tests::umbra::program()?);
    command.args(["run", "--no-shutdown", "--api-socket"]).arg(&socket).stdin(Stdio::null());
    let mut umbra = Running::start(&mut command)?;
    fs::write(at("openapi.json"), document(&socket, &umbra)?)?;
    generate(&python, folder.path())?;
    for (name, text) in [("life.py", include_str!("life.py")), ("calls.py", include_str!("calls.py"))] {
        fs::write(at(name), text)?;
    }
    runs(Command::new(&python).arg(at("life.py")).arg(&socket).arg(folder.path()))?;
    let status = umbra.wait_before(Instant::now() + LIMIT)?;
    ensure!(status.success() && umbra.stderr().is_empty(), "umbra ended with {status}: {}", umbra.stderr());
    Ok(())
}

/// The document, as soon as the API serves.
fn document(socket: &Path, umbra: &Running) -> anyhow::Result<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match Client::new(socket).call("openapi.json", &[], None, "application/json") {
            Ok(answer) => return Ok(answer.body),
            Err(error) => ensure!(Instant::now() < deadline, "{error}; umbra says {:?}", umbra.stderr()),
        }
        sleep(Duration::from_millis(10));
    }
}

/// Makes the package umbra_client of the document in a folder.
fn generate(python: &Path, folder: &Path) -> anyhow::Result<()> {
    // It would format what it makes.
    fs::write(folder.join("generator.yaml"), "post_hooks: []\n")?;
    let mut command = Command::new(python);
    command.args(["-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning", "--path"]);
    command.arg(folder.join("openapi.json")).arg("--config").arg(folder.join("generator.yaml"));
    runs(command.arg("--output-path").arg(folder.join("umbra_client")))
}

/// Runs a command that must succeed, and shows what it prints.
fn runs(command: &mut Command) -> anyhow::Result<()> {
    let begun = Instant::now();
    let finished = finish(command.stdin(Stdio::null()).env("PYTHONDONTWRITEBYTECODE", "1"), LIMIT)?;
    println!("{}\n{:.1} s", finished.stdout, begun.elapsed().as_secs_f64());
    ensure!(finished.status.success(), "{command:?} ended with {}: {}", finished.status, finished.stderr);
    Ok(())
}
