#![expect(unsafe_code, reason = "the process that is searched has to map files")]
//! Searches a process that has a canary in known places, and counts exactly.
//!
//! That process is this test program run again, as [`planter`]. It gets the canary with all bits inverted and never has
//! more than half of it in one piece, except where it plants it.

use std::io::{BufRead, BufReader, Lines, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect};

use super::*;

const VARIABLE: &str = "LAB_TEST_PLANT";
const MASKED: &str = "LAB_TEST_PLANT_MASKED";
const SEED: &str = "seed of the searcher's tests";

/// Where the canary is planted, and how the process may be searched.
fn plant(how: &str, masked: &[u8]) -> Vec<Box<dyn std::any::Any>> {
    let (first, second) = masked.split_at(masked.len() / 2);
    let put = |file: &File, at: u64| {
        for (half, offset) in [(first, 0), (second, first.len())] {
            let half: Vec<u8> = half.iter().map(|byte| byte ^ 0xff).collect();
            file.write_all_at(&half, at + offset as u64).unwrap();
        }
    };
    let memfd = |name: &str, size: u64| {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        file
    };
    let map = |file: &File, size: usize, flags: MapFlags| {
        // SAFETY: the kernel chooses the address and nothing refers to the memory.
        unsafe { mmap(std::ptr::null_mut(), size, ProtFlags::READ, flags, file, 0).unwrap() }
    };
    match how {
        "nothing" => vec![],
        "heap" => {
            let mut heap: Vec<u8> = Vec::with_capacity(5 * masked.len());
            for _ in 0..5 {
                heap.extend(masked.iter().map(|byte| byte ^ 0xff));
            }
            vec![Box::new(heap)]
        }
        "memfd mapped" => {
            let file = memfd("mapped", 1 << 30);
            put(&file, (512 << 20) + 77);
            map(&file, 1 << 30, MapFlags::SHARED);
            vec![Box::new(file)]
        }
        "memfd mapped, descriptor closed" => {
            let file = memfd("closed", 1 << 26);
            put(&file, (1 << 26) - masked.len() as u64);
            map(&file, 1 << 26, MapFlags::SHARED);
            vec![]
        }
        "memfd unmapped" => {
            let file = memfd("unmapped", 1 << 30);
            put(&file, 0);
            put(&file, 700 << 20);
            vec![Box::new(file)]
        }
        "two descriptors of one memfd" => {
            let file = memfd("twice", 1 << 20);
            put(&file, 1000);
            vec![Box::new(file.try_clone().unwrap()), Box::new(file)]
        }
        "across a chunk border" => {
            let file = memfd("border", 4 << 20);
            // Data on both sides, so that the border of two reads lies in it.
            file.write_all_at(&vec![1; 4 << 20], 0).unwrap();
            put(&file, scanner::CHUNK as u64 - 20);
            map(&file, 4 << 20, MapFlags::SHARED);
            vec![Box::new(file)]
        }
        "private copy of a memfd page" => {
            let file = memfd("copied", 1 << 20);
            let flags = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the kernel chooses the address and nothing refers to the memory.
            let address = unsafe { mmap(std::ptr::null_mut(), 1 << 20, flags, MapFlags::PRIVATE, &file, 0).unwrap() };
            unmask(masked, address, 8192);
            vec![]
        }
        "page without access" => {
            let (flags, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
            // SAFETY: the kernel chooses the address and nothing refers to the memory.
            let address = unsafe { mmap_anonymous(std::ptr::null_mut(), 1 << 30, flags, kind).unwrap() };
            unmask(masked, address, 300 << 20);
            // SAFETY: nothing refers to the memory, which is the mapping above.
            unsafe { mprotect(address, 1 << 30, MprotectFlags::empty()).unwrap() };
            vec![]
        }
        "file opened for writing" => {
            let named = tempfile::NamedTempFile::new().unwrap();
            let file = std::fs::OpenOptions::new().write(true).open(named.path()).unwrap();
            put(&file, 10);
            seek(&file, SeekFrom::Start(3)).unwrap();
            // Its name goes here, as the process will be killed.
            vec![Box::new(file)]
        }
        // It takes writes, but has no contents to read or to map.
        "nothing, but a file that refuses" => {
            vec![Box::new(std::fs::OpenOptions::new().write(true).open("/proc/self/clear_refs").unwrap())]
        }
        other => panic!("unknown way to plant: {other}"),
    }
}

/// Writes the canary into the mapping that starts at `address`.
fn unmask(masked: &[u8], address: *mut std::ffi::c_void, offset: usize) {
    for (index, byte) in masked.iter().enumerate() {
        // SAFETY: every caller's mapping is writable and larger than `offset` and the canary together.
        unsafe { address.wrapping_byte_add(offset + index).cast::<u8>().write_volatile(byte ^ 0xff) };
    }
}

#[test]
#[ignore = "not a test: the process that the others search"]
fn planter() {
    let Ok(how) = std::env::var(VARIABLE) else { return };
    let masked = std::env::var(MASKED).unwrap();
    let masked: Vec<u8> = masked
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let planted = plant(&how, &masked);
    println!("\nplanted");
    // Until the tests close the pipe: they can't be outlived.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(planted);
}

/// A process with a canary in it. Its output is kept open, as it still has something to say when it ends.
struct Planter {
    process: Child,
    _output: Lines<BufReader<ChildStdout>>,
}

impl Planter {
    fn start(how: &str) -> Self {
        let masked: String = canary(SEED).bytes().map(|byte| format!("{:02x}", byte ^ 0xff)).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "inside::search::tests::planter", "--ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, how)
            .env(MASKED, masked)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap() == "planted"), "{how}: the planter ended early");
        Self { process: child, _output: lines }
    }

    fn search(&self) -> Findings {
        // The variable's name stands in the planter's environment, as a VMM's seed does in its arguments.
        search(self.process.id(), canary(SEED).as_bytes(), VARIABLE.as_bytes()).unwrap()
    }

    fn descriptor(&self, name: &str) -> File {
        let descriptors = Descriptors::of(self.process.id()).unwrap();
        let found = descriptors.files.into_iter().find(|file| file.name.contains(name)).unwrap();
        match found.access {
            Access::Own(file) => file,
            _ => panic!("{name} cannot be opened again"),
        }
    }
}

impl Drop for Planter {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Plants, searches, and returns the count with the names of the places.
fn count(how: &str) -> (u64, Vec<String>) {
    let findings = Planter::start(how).search();
    assert!(findings.seed_hits > 0, "{how}: {findings:?}");
    let places = findings.places.iter().filter(|place| place.canary_hits > 0).map(|place| place.name.clone()).collect();
    (findings.canary_hits, places)
}

#[test]
fn canary_is_the_guests_digest() {
    // printf %s abc | sha256sum
    assert_eq!(canary("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn nothing_planted_nothing_found() {
    let findings = Planter::start("nothing").search();
    assert_eq!(findings.canary_hits, 0, "{findings:?}");
    assert!(findings.seed_hits > 0 && findings.bytes > 1 << 20 && findings.mappings > 5, "{findings:?}");
    // What can't be read is named: the kernel's own mappings; and the pipes are not files.
    assert!(findings.unread.iter().all(|line| line.starts_with("[v")), "{findings:?}");
    assert!(findings.streams.iter().any(|line| line.starts_with("pipe:")), "{findings:?}");
}

#[test]
fn another_canary_is_not_found() {
    let planter = Planter::start("heap");
    let findings = search(planter.process.id(), canary("another seed").as_bytes(), VARIABLE.as_bytes()).unwrap();
    assert_eq!(findings.canary_hits, 0, "{findings:?}");
}

#[test]
fn heap_is_searched() {
    assert_eq!(count("heap").0, 5);
}

#[test]
fn mapped_memfd_is_searched_through_both_ways() {
    let (hits, places) = count("memfd mapped");
    assert_eq!(hits, 2);
    assert!(places.iter().all(|place| place.contains("memfd:mapped")) && places.len() == 2, "{places:?}");
}

#[test]
fn mapping_without_descriptor_is_searched() {
    assert_eq!(count("memfd mapped, descriptor closed").0, 1);
}

#[test]
fn unmapped_memfd_is_searched() {
    let (hits, places) = count("memfd unmapped");
    assert_eq!((hits, places.len()), (2, 1), "{places:?}");
}

#[test]
fn one_file_is_searched_once() {
    assert_eq!(count("two descriptors of one memfd").0, 1);
}

#[test]
fn border_of_chunks_loses_nothing() {
    assert_eq!(count("across a chunk border").0, 2);
}

#[test]
fn private_copy_is_searched() {
    assert_eq!(count("private copy of a memfd page").0, 1);
}

#[test]
fn memory_without_access_is_searched_and_what_was_never_touched_is_not() {
    let findings = Planter::start("page without access").search();
    assert_eq!(findings.canary_hits, 1);
    assert!(findings.bytes < 512 << 20, "{findings:?}");
}

#[test]
fn search_fills_no_holes() {
    let planter = Planter::start("memfd mapped");
    let file = planter.descriptor("memfd:mapped");
    let before = file.metadata().unwrap().blocks();
    assert!(planter.search().bytes < 512 << 20);
    assert_eq!(file.metadata().unwrap().blocks(), before);
}

#[test]
fn file_opened_for_writing_is_searched_and_keeps_its_offset() {
    let planter = Planter::start("file opened for writing");
    let findings = planter.search();
    assert_eq!(findings.canary_hits, 1, "{findings:?}");
    let offsets: Vec<String> = std::fs::read_dir(format!("/proc/{}/fdinfo", planter.process.id()))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .filter(|info| info.lines().any(|line| line == "pos:\t3"))
        .collect();
    assert_eq!(offsets.len(), 1);
}

#[test]
fn file_that_refuses_is_named_with_both_errors() {
    let findings = Planter::start("nothing, but a file that refuses").search();
    let [refused] = findings.refused_files.as_slice() else { panic!("{findings:?}") };
    assert!(refused.contains("/clear_refs (descriptor"), "{refused}");
    assert!(refused.contains(": pread: ") && refused.contains(", mmap: "), "{refused}");
}

#[test]
fn ended_process_is_an_error() {
    let mut planter = Planter::start("nothing");
    let pid = planter.process.id();
    planter.process.kill().unwrap();
    planter.process.wait().unwrap();
    assert!(search(pid, b"canary", b"seed").is_err());
    // Dropping kills again, which is harmless for a child that has been waited for.
}
