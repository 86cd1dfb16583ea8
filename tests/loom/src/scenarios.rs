//! What devices and conversions do at the same time, and what must hold then.
//!
//! Each scenario panics in those interleavings in which a promise is broken. A page's contents are a loom cell, which
//! also panics whenever two threads touch it without one having happened before the other.

use std::ops::ControlFlow;
use std::sync::Arc;

use hypervisor::{PAGE_SIZE, PageState};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;

use crate::guard::{Guard, GuardHandle};
use crate::guards::Guards;
use crate::pages::PageRange;
use crate::quiesce::{Quiesce, WaitForGuards};
use crate::state_plane::StatePlane;
use crate::writer::{Quiesced, Writer};

/// What a page holds after it was given back.
const POISON: u64 = u64::MAX;

/// Pages of the maps: two words, so that a range can span them.
const PAGES: u64 = 66;

/// The contents of a page.
struct Page(UnsafeCell<u64>);

// SAFETY: whether two threads touch it at the same time is what loom is there to find out.
#[expect(unsafe_code, reason = "the cell stands for guest memory, which threads share")]
unsafe impl Sync for Page {}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Self(UnsafeCell::new(0)))
    }

    fn write(&self, value: u64) {
        #[expect(unsafe_code, reason = "as above")]
        // SAFETY: the pointer is to a live cell; loom checks that nobody else uses it meanwhile.
        self.0.with_mut(|contents| unsafe { *contents = value });
    }

    fn read(&self) -> u64 {
        #[expect(unsafe_code, reason = "as above")]
        // SAFETY: the pointer is to a live cell; loom checks that nobody writes to it meanwhile.
        self.0.with(|contents| unsafe { *contents })
    }
}

fn pages(first: u64, end: u64) -> PageRange {
    PageRange::new(first, end).expect("a range")
}

fn memory() -> (Arc<Guards>, Writer) {
    let (plane, writer) = StatePlane::new(PAGES * PAGE_SIZE, 2).expect("a plane");
    (Guards::new(plane), writer)
}

/// A device reads and writes a page once, if it may, the way views do it as a rule.
fn touch(handle: &GuardHandle, range: PageRange, page: &Page) {
    touch_under(handle.guard_quickly(range), page);
}

fn touch_under(guard: Option<Guard<'_>>, page: &Page) {
    if let Some(_guard) = guard {
        let before = page.read();
        assert_ne!(before, POISON, "a device saw what a discarded page holds");
        page.write(before + 1);
    }
}

/// Revokes and quiesces.
fn quiesce(writer: &mut Writer, guards: &Guards, range: PageRange, how: &dyn Quiesce) -> Quiesced {
    let revoked = writer.revoke(range).expect("shared pages");
    revoked.quiesce(how, guards, &mut |_| ControlFlow::Continue(())).expect("nobody gives up")
}

/// To private: what is flipped and given back right after quiescing is touched by no device any more.
pub fn to_private(how: &dyn Quiesce) {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (handle, page) = (guards.handle("device"), page.clone());
        thread::spawn(move || {
            touch(&handle, pages(0, 1), &page);
            touch(&handle, pages(0, 1), &page);
        })
    };
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), how);
    page.write(POISON);
    writer.commit(quiesced);
    device.join().expect("the device");
    assert!(guards.plane().is_private(0));
}

/// To private without waiting, where nobody is at the page; given up where somebody may be.
pub fn to_private_at_rest(how: &dyn Quiesce) {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (handle, page) = (guards.handle("device"), page.clone());
        thread::spawn(move || {
            touch(&handle, pages(0, 1), &page);
            touch(&handle, pages(0, 1), &page);
        })
    };
    at_rest(&mut writer, &guards, how, &page);
    device.join().expect("the device");
}

/// The same beside a pin.
pub fn to_private_at_rest_beside_a_pin(how: &dyn Quiesce) {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (guards, page) = (guards.clone(), page.clone());
        thread::spawn(move || {
            if let Ok(_pin) = guards.pin(&[pages(0, 1)], &"device".into()) {
                let before = page.read();
                assert_ne!(before, POISON, "a device saw what a discarded page holds");
                page.write(before + 1);
            }
        })
    };
    at_rest(&mut writer, &guards, how, &page);
    device.join().expect("the device");
}

fn at_rest(writer: &mut Writer, guards: &Guards, how: &dyn Quiesce, page: &Page) {
    let revoked = writer.revoke(pages(0, 1)).expect("a shared page");
    match revoked.try_quiesce(how, guards) {
        Ok(quiesced) => {
            page.write(POISON);
            writer.commit(quiesced);
        }
        Err(revoked) => writer.restore(revoked),
    }
}

/// To private, of pages in two words, while a device touches both and a second guard at the same time.
pub fn to_private_two_words() {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (handle, page) = (guards.handle("device"), page.clone());
        thread::spawn(move || {
            let other = handle.guard(pages(3, 4)).expect("a page that stays shared");
            touch_under(handle.guard(pages(62, 65)).ok(), &page);
            drop(other);
        })
    };
    let quiesced = quiesce(&mut writer, &guards, pages(63, 66), &WaitForGuards);
    page.write(POISON);
    writer.commit(quiesced);
    device.join().expect("the device");
}

/// To shared: a device that is let in sees what was done to the page before.
pub fn to_shared() {
    let (guards, mut writer) = memory();
    let page = Page::new();
    page.write(POISON);
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), &WaitForGuards);
    writer.commit(quiesced);
    let device = {
        let (handle, page) = (guards.handle("device"), page.clone());
        thread::spawn(move || touch(&handle, pages(0, 1), &page))
    };
    page.write(0);
    writer.share(pages(0, 1)).expect("a private page");
    device.join().expect("the device");
}

/// To private and back: no device sees the page between, and what it sees afterwards is new.
pub fn there_and_back(how: &dyn Quiesce) {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (handle, page) = (guards.handle("device"), page.clone());
        thread::spawn(move || touch(&handle, pages(0, 1), &page))
    };
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), how);
    page.write(POISON);
    writer.commit(quiesced);
    page.write(0);
    writer.share(pages(0, 1)).expect("a private page");
    device.join().expect("the device");
}

/// A device that comes into being during a conversion is no way around it.
pub fn new_device() {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (guards, page) = (guards.clone(), page.clone());
        thread::spawn(move || touch(&guards.handle("device"), pages(0, 1), &page))
    };
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), &WaitForGuards);
    page.write(POISON);
    writer.commit(quiesced);
    device.join().expect("the device");
}

/// A guard, held for as long as it takes, delays no conversion of another page: this would hang.
pub fn a_long_guard_elsewhere() {
    let (guards, mut writer) = memory();
    let handle = guards.handle("device");
    let _long = handle.guard(pages(1, 2)).expect("a shared page");
    let converter = {
        let guards = guards.clone();
        thread::spawn(move || {
            let quiesced = quiesce(&mut writer, &guards, pages(0, 1), &WaitForGuards);
            writer.commit(quiesced);
        })
    };
    converter.join().expect("the converter");
}

/// A guard and its copies: the last one to go ends it.
pub fn copies() {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (handle, page) = (guards.handle("device"), page.clone());
        thread::spawn(move || {
            if let Ok(guard) = handle.guard(pages(0, 1)) {
                let copy = guard.clone();
                drop(guard);
                assert_ne!(page.read(), POISON);
                drop(copy);
            }
        })
    };
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), &WaitForGuards);
    page.write(POISON);
    writer.commit(quiesced);
    device.join().expect("the device");
}

/// A pin keeps its pages shared until it is dropped, on another thread than it was made on.
pub fn pins(how: &dyn Quiesce) {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (guards, page) = (guards.clone(), page.clone());
        thread::spawn(move || {
            if let Ok(pin) = guards.pin(&[pages(0, 1)], &"device".into()) {
                let completion = thread::spawn(move || {
                    let before = page.read();
                    assert_ne!(before, POISON);
                    page.write(before + 1);
                    drop(pin);
                });
                completion.join().expect("the completion");
            }
        })
    };
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), how);
    page.write(POISON);
    writer.commit(quiesced);
    device.join().expect("the device");
}

/// More guards than there are slots.
pub fn overflow() {
    let (guards, mut writer) = memory();
    let page = Page::new();
    let device = {
        let (handle, page) = (guards.handle("device"), page.clone());
        thread::spawn(move || {
            let others: Vec<_> = (3..5).map(|n| handle.guard(pages(n, n + 1)).expect("a shared page")).collect();
            touch_under(handle.guard(pages(0, 1)).ok(), &page);
            drop(others);
        })
    };
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), &WaitForGuards);
    page.write(POISON);
    writer.commit(quiesced);
    device.join().expect("the device");
}

/// Two conversions at a time, of pages whose bits are in one word, with the writer under a lock.
pub fn two_conversions() {
    let (guards, writer) = memory();
    let writer = Arc::new(Mutex::new(writer));
    let contents = [Page::new(), Page::new()];
    let convert = |index: u64| {
        let (guards, writer) = (guards.clone(), writer.clone());
        let page = contents[index as usize].clone();
        move || {
            let range = pages(index, index + 1);
            let revoked = writer.lock().expect("the writer").revoke(range).expect("a shared page");
            let quiesced =
                revoked.quiesce(&WaitForGuards, &guards, &mut |_| ControlFlow::Continue(())).expect("nobody gives up");
            let mut writer = writer.lock().expect("the writer");
            page.write(POISON);
            writer.commit(quiesced);
        }
    };
    let (first, second) = (convert(0), convert(1));
    let handle = guards.handle("device");
    let (one, other) = (thread::spawn(first), thread::spawn(second));
    touch(&handle, pages(1, 2), &contents[1]);
    one.join().expect("a converter");
    other.join().expect("a converter");
    assert!(guards.plane().is_private(0) && guards.plane().is_private(1));
    assert_eq!(guards.plane().statistics().private_bytes, 2 * PAGE_SIZE);
}

/// A page whose conversions are all given up is never private, whoever asks and when.
pub fn state_while_conversions_are_given_up() {
    let (guards, mut writer) = memory();
    let reader = {
        let plane = guards.plane().clone();
        thread::spawn(move || assert_eq!(plane.state(0), Some(PageState::Shared)))
    };
    for _ in 0..2 {
        let revoked = writer.revoke(pages(0, 1)).expect("a shared page");
        writer.restore(revoked);
    }
    reader.join().expect("the reader");
}

/// The same for the map as runs, whose conversions in flight are read once for several words.
pub fn runs_while_a_conversion_is_given_up() {
    let (guards, mut writer) = memory();
    let reader = {
        let plane = guards.plane().clone();
        thread::spawn(move || assert!(plane.is_all(pages(0, PAGES), PageState::Shared)))
    };
    let revoked = writer.revoke(pages(63, 65)).expect("shared pages");
    writer.restore(revoked);
    reader.join().expect("the reader");
}

/// A page is private from the commit on and not before, and shared again only once it has been made so.
pub fn state_while_converting() {
    let (guards, mut writer) = memory();
    let reader = {
        let plane = guards.plane().clone();
        thread::spawn(move || {
            let seen: Vec<bool> = (0..3).map(|_| plane.is_private(0)).collect();
            let changes = seen.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(changes <= usize::from(!seen[0]), "{seen:?}");
        })
    };
    let quiesced = quiesce(&mut writer, &guards, pages(0, 1), &WaitForGuards);
    writer.commit(quiesced);
    assert!(guards.plane().is_private(0));
    reader.join().expect("the reader");
}

/// A conversion that ends says nothing about the pages of another one.
pub fn state_beside_another_conversion() {
    let (guards, mut writer) = memory();
    let first = quiesce(&mut writer, &guards, pages(0, 1), &WaitForGuards);
    let second = quiesce(&mut writer, &guards, pages(1, 2), &WaitForGuards);
    let reader = {
        let plane = guards.plane().clone();
        thread::spawn(move || assert_eq!(plane.state(1), Some(PageState::Shared)))
    };
    writer.commit(first);
    reader.join().expect("the reader");
    writer.commit(second);
}
