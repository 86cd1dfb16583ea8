//! Disks: what is written by one guest is read by the next, and a hot-added one is found and goes.

use std::path::Path;

use anyhow::{Context, ensure};
use arch::x86_64::Isolation;
use kvm_tests::expect;
use kvm_tests::linux::machine::{Boot, Linux};
use vmm::config::DiskConfig;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("an_unmappable_guest_writes_to_a_disk_and_a_plugged_one", || disks(Isolation::Software)),
    ("an_ordinary_guest_writes_to_a_disk_and_a_plugged_one", || disks(Isolation::None)),
    ("an_ordinary_guest_bounces_what_it_writes_if_it_is_told_to", bounces),
];

const SIZE: u64 = 8 << 20;

fn disk(path: &Path) -> DiskConfig {
    DiskConfig {
        id: None,
        path: path.into(),
        readonly: false,
        queues: 1,
        queue_size: 128,
        serial: Some("umbra".into()),
    }
}

const SCRIPT: &str = r#"
say size $(cat /sys/block/vda/size) serial $(cat /sys/block/vda/serial)
yes first | dd of=/dev/vda bs=64k count=16 iflag=fullblock conv=fsync 2>/dev/null && say written
until [ -e /dev/vdb ]; do sleep 0.1; done
yes second | dd of=/dev/vdb bs=64k count=16 iflag=fullblock conv=fsync 2>/dev/null && say written
while [ -e /dev/vdb ]; do sleep 0.1; done
say gone
until [ -e /dev/vdb ]; do sleep 0.1; done
say first $(dd if=/dev/vdb bs=6 count=1 2>/dev/null)
"#;

/// The feature's bit, of which the first is number 0; and what swiotlb has been used for.
const BOUNCES: &str = r#"
say feature $(cut -c 34 /sys/block/vda/device/features)
yes first | dd of=/dev/vda bs=64k count=16 iflag=fullblock conv=fsync 2>/dev/null && say written
mkdir -p /debug && mount -t debugfs debugfs /debug
[ "$(cat /debug/swiotlb/io_tlb_used_hiwater)" -gt 0 ] && say bounced
"#;

/// With VIRTIO_F_ACCESS_PLATFORM, which Linux needs to be offered for that.
fn bounces() -> anyhow::Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(SIZE)?;
    let boot = Boot { isolation: Isolation::None, modules: &["virtio_blk"], script: BOUNCES };
    let mut guest = Linux::boot(&boot, |config| {
        config.disks.push(disk(image.path()));
        config.access_platform = Some(true);
        config.command_line.push_str(" swiotlb=force");
    })?;
    for words in ["feature 1", "written", "bounced"] {
        guest.expect(words)?;
    }
    guest.powers_off()?;
    let expected = b"first\n".repeat((1 << 20) / 6 + 1);
    ensure!(std::fs::read(image.path())?[..1 << 20] == expected[..1 << 20], "the disk is not as written");
    Ok(())
}

fn disks(isolation: Isolation) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    for path in [&first, &second] {
        std::fs::File::create(path)?.set_len(SIZE)?;
    }
    let boot = Boot { isolation, modules: &["virtio_blk"], script: SCRIPT };
    let mut guest = Linux::boot(&boot, |config| config.disks.push(disk(&first)))?;
    guest.expect(&format!("size {} serial umbra", SIZE / 512))?;
    guest.expect("written")?;
    let devices = guest.handle().devices().clone();
    let added = devices.add_disk(disk(&second))?;
    expect::equal("its name", added.id.as_str(), "_disk1")?;
    guest.expect("written")?;
    let counters = devices.counters();
    let counted = counters.get("_disk1").with_context(|| format!("{counters:?} has no _disk1"))?;
    ensure!(counted["write_bytes"] >= 1 << 20 && counted["failed"] == 0, "{counted:?}");
    devices.remove(&added.id)?;
    guest.expect("gone")?;
    guest.lets_go(&added.id)?;
    // The image is free again, and the slot.
    let again = devices.add_disk(disk(&first)).err().context("a disk that is in use is added twice")?;
    ensure!(again.to_string().contains("in use"), "{again}");
    expect::equal("its place", devices.add_disk(disk(&second))?.bdf, added.bdf)?;
    guest.expect("first second")?;
    guest.powers_off()?;
    for (path, word) in [(&first, "first\n"), (&second, "second\n")] {
        let expected = word.repeat((1 << 20) / word.len() + 1);
        ensure!(
            std::fs::read(path)?[..1 << 20] == expected.as_bytes()[..1 << 20],
            "{} is not as written",
            path.display()
        );
    }
    Ok(())
}
