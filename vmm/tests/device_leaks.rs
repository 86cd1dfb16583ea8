//! Devices that come and go leave no thread, descriptor, file or guard behind. A program of its own: it counts what the
//! process has. Network devices have theirs, in `network`.

#![cfg(test)]

#[path = "virtio/driver.rs"]
mod driver;
#[path = "virtio/guest.rs"]
mod guest;

use hypervisor::PageState::Private;
use vmm::config::{BalloonConfig, DiskConfig, VsockConfig};
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::balloon::Balloon;
use vmm::devices::virtio::block::Block;
use vmm::devices::virtio::console::{Console, ConsoleInput};
use vmm::devices::virtio::vsock::Vsock;

use guest::{Guest, wait_until};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn devices_leave_nothing_behind() {
    let guest = Guest::new();
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::write(&image, [0; 4096]).unwrap();
    let disk = DiskConfig { id: None, path: image, readonly: false, queues: 3, queue_size: 64, serial: None };
    let vsock = VsockConfig { id: None, cid: 3, socket: directory.path().join("socket") };
    let balloon = BalloonConfig { size: 0, deflate_on_oom: true, free_page_reporting: true };
    let queues: Vec<_> = (0..3).map(|index| guest.queue(index, 64)).collect();
    let buffers = guest.pages(16);
    let (before, running) = (descriptors(), threads());
    for round in 0..50 {
        let input = ConsoleInput::new().unwrap();
        let devices: [Box<dyn VirtioDevice>; 4] = [
            Box::new(Block::new(&disk).unwrap()),
            Box::new(Console::new(Box::new(std::io::sink()), input).unwrap()),
            Box::new(Vsock::new(&vsock).unwrap()),
            Box::new(Balloon::new(&balloon, guest.ram.clone()).unwrap()),
        ];
        for mut device in devices {
            let names = device.counters().len();
            for queue in &queues {
                queue.reset(&guest);
                // Something for each, whatever it makes of it.
                for n in 0..4 {
                    queue.offer(&guest, &[(buffers + n * 4096, 64, false)]);
                    queue.offer(&guest, &[(buffers + n * 4096, 4096, true)]);
                }
                queue.notify();
            }
            device.activate(guest.activation(0, &queues.iter().collect::<Vec<_>>())).unwrap();
            assert!(threads() > running);
            match round % 3 {
                0 => device.deactivate(),
                1 => device.pause(),
                _ => {}
            }
            assert_eq!(device.counters().len(), names);
        }
    }
    // A thread that was waited for shows for a moment longer.
    wait_until(|| threads() == running);
    assert_eq!(descriptors(), before);
    assert!(!vsock.socket.exists());
    // No guard is held any more: this would wait.
    guest.convert(buffers, 16, Private);
}
