//! Memory that the guest gives back, as much as it is asked for, and what it has no use for; seen from both sides.
//!
//! Each guest has another size, by which its memory is told from that of other guests of this process.

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::expect;
use kvm_tests::linux::machine::{Boot, Linux, wait_until};
use kvm_tests::umbra::anonymous_memory::resident;
use vmm::config::BalloonConfig;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_ordinary_guest_gives_memory_back_by_a_balloon_and_takes_it_again", balloon),
    ("an_ordinary_guest_gives_back_what_it_has_no_use_for", reports),
];

const MIB: u64 = 1 << 20;
/// What the guest fills, most of its memory.
const FILLED: u64 = 176 * MIB;

/// What both scripts begin with. The kernel takes what is in the balloon off its total, in KiB.
const FILL: &str = r#"
total() { awk '/^MemTotal:/ { print $2 }' /proc/meminfo; }
mkdir /files
mount -t tmpfs -o size=100% tmpfs /files
fill() {
    dd if=/dev/zero of=/files/zeros bs=1M count=176 2>/dev/null
    say filled $(wc -c </files/zeros)
}
"#;

/// A guest of this size with a balloon.
fn boot(script: &str, size: u64, free_page_reporting: bool) -> anyhow::Result<Linux> {
    let script = format!("{FILL}{script}");
    let boot = Boot { isolation: Isolation::None, modules: &["virtio_balloon"], script: &script };
    Linux::boot(&boot, |config| {
        config.memory.size = size;
        config.balloon = Some(BalloonConfig { size: 0, deflate_on_oom: false, free_page_reporting });
    })
}

/// Bytes of the host's memory behind the guest of this size.
fn behind(size: u64) -> anyhow::Result<u64> {
    resident(rustix::process::getpid(), size)
}

/// What the balloon counts.
fn counted(guest: &Linux, name: &str) -> anyhow::Result<u64> {
    let counters = guest.handle().devices().counters();
    let counter = counters.get("_balloon0").and_then(|balloon| balloon.get(name));
    counter.copied().with_context(|| format!("there is no {name} in {counters:?}"))
}

/// What was given back and not taken again. The guest may exchange a page in between, one for another.
fn held(guest: &Linux) -> anyhow::Result<u64> {
    let taken = counted(guest, "deflated_bytes")?;
    Ok(counted(guest, "inflated_bytes")?.saturating_sub(taken))
}

/// The guest fills memory, and the host has that much less.
fn fills(guest: &mut Linux, size: u64) -> anyhow::Result<()> {
    guest.expect(&format!("filled {FILLED}"))?;
    let allocated = behind(size)?;
    ensure!(allocated >= FILLED, "only {allocated} bytes are behind a guest that has filled {FILLED}");
    Ok(())
}

const INFLATE: &str = r#"
fill
rm /files/zeros
before=$(total)
say empty
until [ $(total) = $((before - 196608)) ]; do sleep 0.1; done
say smaller
until [ $(total) = $before ]; do sleep 0.1; done
say as before
fill
yes balloon | dd of=/files/text bs=64k count=64 iflag=fullblock 2>/dev/null
say lines $(sort -u /files/text | tr '\n' ' ')
"#;

fn balloon() -> anyhow::Result<()> {
    const RAM: u64 = 320 * MIB;
    const TAKEN: u64 = 192 * MIB;
    let mut guest = boot(INFLATE, RAM, false)?;
    fills(&mut guest, RAM)?;
    guest.expect("empty")?;
    ensure!(behind(RAM)? > RAM - TAKEN, "it has filled too little for what follows");

    guest.handle().devices().set_balloon(TAKEN)?;
    guest.expect("smaller")?;
    // It says so last of all, and all of it is given back by then.
    wait_until("the guest does not say what it gave back", || Ok(counted(&guest, "actual_bytes")? == TAKEN))?;
    expect::equal("what the balloon is told to hold", guest.handle().devices().balloon_size(), TAKEN)?;
    wait_until("other memory is given back than the guest says", || Ok(held(&guest)? == TAKEN))?;
    let allocated = behind(RAM)?;
    ensure!(allocated <= RAM - TAKEN, "{allocated} bytes are behind a guest that gave back {TAKEN} of its {RAM}");

    guest.handle().devices().set_balloon(0)?;
    guest.expect("as before")?;
    fills(&mut guest, RAM)?;
    guest.expect("lines balloon")?;
    wait_until("the guest does not say what it took", || Ok(counted(&guest, "actual_bytes")? == 0))?;
    wait_until("other memory is taken again than was given back", || Ok(held(&guest)? == 0))?;
    sound(&guest)?;
    guest.powers_off()
}

/// That the balloon is to grow is the sign to go on.
const REPORT: &str = "
fill
before=$(total)
rm /files/zeros
until [ $(total) != $before ]; do sleep 0.1; done
fill
";

fn reports() -> anyhow::Result<()> {
    const RAM: u64 = 384 * MIB;
    /// How much of what is freed comes back at least: the kernel reports blocks of 2 MiB and more.
    const MOST: u64 = 128 * MIB;
    let mut guest = boot(REPORT, RAM, true)?;
    fills(&mut guest, RAM)?;
    // Everything else that the guest uses fits into the rest.
    wait_until("the host does not get back what the guest has freed", || {
        Ok(counted(&guest, "reported_bytes")? >= MOST && behind(RAM)? < FILLED)
    })?;
    guest.handle().devices().set_balloon(MIB)?;
    fills(&mut guest, RAM)?;
    sound(&guest)?;
    guest.powers_off()
}

/// The balloon has met nothing that was wrong.
fn sound(guest: &Linux) -> anyhow::Result<()> {
    for name in ["failed", "refused", "queue_faults"] {
        expect::equal(name, counted(guest, name)?, 0)?;
    }
    Ok(())
}
