//! The virtio console.

use arch::x86_64::Isolation;
use kvm_tests::linux::machine::{Boot, Linux};
use vmm::config::ConsoleConfig;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_writes_to_its_virtio_console", || writes(Isolation::Software)),
    ("an_ordinary_guest_writes_to_its_virtio_console", || writes(Isolation::None)),
];

const SCRIPT: &str = "
echo by the console >/dev/hvc0 && say written
";

fn writes(isolation: Isolation) -> anyhow::Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let boot = Boot { isolation, modules: &[], script: SCRIPT };
    let mut guest = Linux::boot(&boot, |config| config.console = ConsoleConfig::File(file.path().to_owned()))?;
    guest.expect("written")?;
    guest.powers_off()?;
    let written = std::fs::read_to_string(file.path())?;
    anyhow::ensure!(written.trim_end() == "by the console", "{written:?}");
    Ok(())
}
