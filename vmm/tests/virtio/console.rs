//! Consoles: what is written and typed arrives, whole and in order.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hypervisor::PageState::Private;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::console::{Console, ConsoleInput, MAX_INPUT};

use crate::driver::Queue;
use crate::guest::{Guest, counter, wait_until};

/// An output that would block now and then, takes a few bytes at a time, or fails.
#[derive(Clone, Default)]
struct Screen {
    text: Arc<Mutex<Vec<u8>>>,
    blocked: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.blocked.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(7);
        self.text.lock().unwrap().extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    guest: Guest,
    receive: Queue,
    transmit: Queue,
    device: Console,
    input: Arc<ConsoleInput>,
    screen: Screen,
}

impl World {
    fn new() -> Self {
        let (guest, screen, input) = (Guest::new(), Screen::default(), ConsoleInput::new().unwrap());
        let mut device = Console::new(Box::new(screen.clone()), input.clone()).unwrap();
        let (receive, transmit) = (guest.queue(0, 64), guest.queue(1, 64));
        device.activate(guest.activation(0, &[&receive, &transmit])).unwrap();
        Self { guest, receive, transmit, device, input, screen }
    }

    fn say(&self, text: &[u8]) {
        let page = self.guest.pages(text.len().div_ceil(4096) as u64);
        self.guest.write(page, text);
        self.transmit.offer(&self.guest, &[(page, text.len() as u32, false)]);
        self.transmit.notify();
    }

    #[track_caller]
    fn shows(&self, text: &[u8]) {
        wait_until(|| self.screen.text.lock().unwrap().len() >= text.len());
        assert_eq!(*self.screen.text.lock().unwrap(), text);
    }
}

#[test]
fn what_the_guest_says_is_shown() {
    let world = World::new();
    assert_eq!((world.device.device_type(), world.device.queue_sizes()), (3, vec![64, 64]));
    world.say(b"hello, ");
    world.say(b"world: this is more than seven bytes");
    world.shows(b"hello, world: this is more than seven bytes");
    let expected = u64::try_from(b"hello, world: this is more than seven bytes".len()).unwrap();
    wait_until(|| counter(&world.device, "output_bytes") == expected);
}

#[test]
fn input_arrives_when_the_guest_has_room() {
    let world = World::new();
    let text: Vec<u8> = (0..MAX_INPUT + 1000).map(|at| (at % 251) as u8).collect();
    assert_eq!(world.input.input(&text), MAX_INPUT, "no more is taken than is promised");
    assert_eq!(world.input.input(b"x"), 0);
    let mut seen: Vec<u8> = Vec::new();
    while seen.len() < MAX_INPUT {
        let page = world.guest.pages(1);
        world.receive.offer(&world.guest, &[(page, 1000, true), (page + 2000, 24, true)]);
        world.receive.notify();
        let (_, written) = world.receive.wait(&world.guest);
        let bytes = [world.guest.read(page, 1000), world.guest.read(page + 2000, 24)].concat();
        seen.extend(&bytes[..written as usize]);
    }
    assert_eq!(seen, text[..MAX_INPUT]);
    // And when the guest waits for it.
    let page = world.guest.pages(1);
    world.receive.offer(&world.guest, &[(page, 1000, true)]);
    world.receive.notify();
    assert_eq!(world.input.input(b"typed"), 5);
    assert_eq!(world.receive.wait(&world.guest).1, 5);
    assert_eq!(world.guest.read(page, 5), b"typed");
}

#[test]
fn an_output_that_would_block_holds_up_the_guest_and_nothing_else() {
    let mut world = World::new();
    world.screen.blocked.store(true, Ordering::SeqCst);
    (0..40).for_each(|n| world.say(&[n; 100]));
    // One is held, and no more are taken.
    wait_until(|| world.transmit.pending(&world.guest) == 1);
    world.device.pause();
    world.device.resume();
    assert_eq!(world.input.input(b"still there"), 11);
    let page = world.guest.pages(1);
    world.receive.offer(&world.guest, &[(page, 100, true)]);
    world.receive.notify();
    assert_eq!(world.receive.wait(&world.guest).1, 11);
    assert_eq!(world.transmit.pending(&world.guest), 1);
    world.screen.blocked.store(false, Ordering::SeqCst);
    let expected: Vec<u8> = (0..40).flat_map(|n| [n; 100]).collect();
    world.shows(&expected);
}

#[test]
fn what_is_held_outlives_resets_and_is_shown_at_the_end() {
    let mut world = World::new();
    world.screen.blocked.store(true, Ordering::SeqCst);
    world.say(b"first, ");
    wait_until(|| world.transmit.pending(&world.guest) == 1);
    world.device.deactivate();
    let (receive, transmit) = (world.guest.queue(0, 64), world.guest.queue(1, 64));
    world.device.activate(world.guest.activation(0, &[&receive, &transmit])).unwrap();
    world.device.deactivate();
    let World { device, screen, .. } = world;
    assert!(screen.text.lock().unwrap().is_empty());
    let blocked = screen.blocked.clone();
    // While the end waits, or before.
    let unblock = std::thread::spawn(move || blocked.store(false, Ordering::SeqCst));
    drop(device);
    unblock.join().unwrap();
    assert_eq!(*screen.text.lock().unwrap(), b"first, ");
    // An output that takes nothing does not keep the end.
    let world = World::new();
    world.screen.blocked.store(true, Ordering::SeqCst);
    world.say(b"lost");
    wait_until(|| world.transmit.pending(&world.guest) == 1);
    drop(world);
}

#[test]
fn a_failing_output_does_not_stop_the_guest() {
    let world = World::new();
    world.screen.broken.store(true, Ordering::SeqCst);
    world.say(b"lost");
    wait_until(|| counter(&world.device, "lost_bytes") == 4);
    world.screen.broken.store(false, Ordering::SeqCst);
    world.say(b"seen");
    world.shows(b"seen");
}

#[test]
fn private_and_endless_buffers_fail_on_their_own() {
    let world = World::new();
    let private = world.guest.pages(1);
    world.guest.convert(private, 1, Private);
    world.transmit.request(&world.guest, &[(private, 10, false)]);
    world.transmit.request(&world.guest, &[(1 << 20, 1 << 20, false)]);
    world.say(b"fine");
    world.shows(b"fine");
    world.input.input(b"typed");
    let page = world.guest.pages(1);
    world.receive.offer(&world.guest, &[(private, 10, true)]);
    world.receive.offer(&world.guest, &[(page, 10, true)]);
    world.receive.notify();
    assert_eq!(world.receive.wait(&world.guest).1, 0);
    assert_eq!(world.receive.wait(&world.guest).1, 5);
    assert_eq!(world.guest.read(page, 5), b"typed");
    assert_eq!((counter(&world.device, "failed"), counter(&world.device, "refused")), (3, 2));
}

#[test]
fn input_outlives_a_reset_and_a_pause() {
    let mut world = World::new();
    world.device.pause();
    world.input.input(b"one ");
    world.device.deactivate();
    world.input.input(b"two");
    world.receive.reset(&world.guest);
    world.transmit.reset(&world.guest);
    world.device.activate(world.guest.activation(0, &[&world.receive, &world.transmit])).unwrap();
    let page = world.guest.pages(1);
    assert_eq!(world.receive.request(&world.guest, &[(page, 100, true)]), 7);
    assert_eq!(world.guest.read(page, 7), b"one two");
}
