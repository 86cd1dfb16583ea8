//! The power button.

use arch::x86_64::Isolation;
use kvm_tests::linux::machine::{Boot, Linux};

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_is_told_of_the_power_button", || pushes(Isolation::Software)),
    ("an_ordinary_guest_is_told_of_the_power_button", || pushes(Isolation::None)),
];

/// Reads an input event: type 1 (a key), code 116 (KEY_POWER), value 1 (pressed) (Linux `input-event-codes.h`).
const WAIT: &str = r#"
say button $(cat /sys/class/input/event0/device/name)
say ready
set -- $(dd if=/dev/input/event0 bs=24 count=1 2>/dev/null | od -An -tu2 -j16 -N6)
say pushed $*
"#;

fn pushes(isolation: Isolation) -> anyhow::Result<()> {
    let boot = Boot { isolation, modules: &["evdev", "button"], script: WAIT };
    let mut guest = Linux::boot(&boot, |_| {})?;
    guest.expect("button Power Button")?;
    guest.expect("ready")?;
    let devices = guest.handle().devices().clone();
    // The guest may not be listening yet, and keys of the past are not kept.
    let mut pushed = guest.try_says()?;
    while pushed.is_none() {
        devices.power_button()?;
        pushed = guest.try_says()?;
    }
    anyhow::ensure!(pushed.as_deref() == Some("pushed 1 116 1"), "{pushed:?}");
    guest.powers_off()
}
