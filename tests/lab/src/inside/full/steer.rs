//! What an operator does with a machine that runs: through the API, and with `umbra ctl`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use super::disk;
use super::machine::{Vm, WINDOW, with_path};
use super::work::Answer;
use super::{STEP, milliseconds, step};
use crate::demo::figures::MemoryStats;
use crate::demo::full::figures::Full;

/// The size of the disk that is added, and how much of it the guest writes.
const DISK_BYTES: u64 = 64 << 20;
const WRITTEN_MIB: u64 = 32;
/// Where the guest sees it: the first one is vda.
const DEVICE: &str = "/dev/vdb";
/// How long nothing has to arrive from a paused machine.
const QUIET: Duration = Duration::from_secs(1);

/// What the machine says of itself.
#[derive(Debug, Deserialize)]
struct Info {
    state: String,
}

/// A run of the memory map.
#[derive(Debug, Deserialize)]
struct Run {
    gpa: u64,
    size: u64,
    state: String,
    window: bool,
}

#[derive(Debug, Deserialize)]
struct Map {
    runs: Vec<Run>,
    next: Option<u64>,
}

/// Adds a disk, has the guest fill it, and looks at what arrived in its file.
pub fn add_disk(vm: &Vm<'_>, full: &mut Full) -> Result<()> {
    let path = vm.new_disk(DISK_BYTES)?;
    step("added a second disk, which the guest filled", || {
        vm.ctl(&["add-disk".into(), with_path("path=", &path)])?;
        let said = vm.ssh.run(include_str!("guest/hot_disk.sh"), &[DEVICE, &WRITTEN_MIB.to_string()], STEP)?;
        let arrived = disk::sha256(&path, WRITTEN_MIB << 20)?;
        ensure!(Answer::read(&said).text("sha256")? == arrived, "the disk's file does not hold what the guest wrote");
        Ok(())
    })?;
    full.hot_disk_bytes = WRITTEN_MIB << 20;
    Ok(())
}

/// Pauses the machine, sees that its traffic stands still, resumes it, and sees that the traffic goes on.
pub fn pause_and_resume(vm: &Vm<'_>, traffic: &AtomicU64, full: &mut Full) -> Result<()> {
    step("paused and resumed", || {
        let start = Instant::now();
        vm.api.put("vm.pause", None::<&()>)?;
        full.pause_ms = milliseconds(start.elapsed());
        expect_state(vm, "Paused")?;
        let before = wait_for_silence(traffic)?;
        std::thread::sleep(QUIET);
        let moved = traffic.load(Ordering::Relaxed) - before;
        let start = Instant::now();
        vm.api.put("vm.resume", None::<&()>)?;
        full.resume_ms = milliseconds(start.elapsed());
        expect_state(vm, "Running")?;
        ensure!(moved == 0, "the paused guest sent {moved} bytes");
        vm.wait_above(traffic, before).context("after resuming")?;
        Ok(())
    })
}

fn expect_state(vm: &Vm<'_>, state: &str) -> Result<()> {
    let info: Info = vm.api.get("vm.info")?;
    ensure!(info.state == state, "the machine says that it is {}, not {state}", info.state);
    Ok(())
}

/// Waits until what was on its way through the host's queues has arrived; returns the count then.
fn wait_for_silence(traffic: &AtomicU64) -> Result<u64> {
    let deadline = Instant::now() + STEP;
    loop {
        let before = traffic.load(Ordering::Relaxed);
        std::thread::sleep(QUIET);
        if traffic.load(Ordering::Relaxed) == before {
            return Ok(before);
        }
        ensure!(Instant::now() < deadline, "the paused guest goes on sending");
    }
}

/// Converts the reserved window to shared and back.
pub fn convert_window(vm: &Vm<'_>, full: &mut Full) -> Result<()> {
    step("converted the window to shared and back", || {
        let window: Vec<Run> = map(vm)?.into_iter().filter(|run| run.window).collect();
        let size: u64 = window.iter().map(|run| run.size).sum();
        ensure!(size == WINDOW, "the memory map has a window of {size} bytes");
        let gpa = window.first().context("there is no window")?.gpa;
        for state in ["shared", "private"] {
            let request = json!({"gpa": gpa, "size": size, "to": state, "contents": "discard"});
            vm.api.put("vm.memory-convert", Some(&request))?;
            let runs = map(vm)?;
            let is = |run: &&Run| run.window && run.state == state;
            let converted: u64 = runs.iter().filter(is).map(|run| run.size).sum();
            ensure!(converted == size, "{converted} of {size} bytes of the window are {state} after converting it");
        }
        full.window_bytes = size;
        Ok(())
    })
}

/// Fetches map, statistics, metrics and the picture, and checks that they tell of this machine.
pub fn look_at_memory(vm: &Vm<'_>, full: &mut Full) -> Result<()> {
    step("fetched map, statistics, metrics and the picture", || {
        let stats: MemoryStats = vm.api.get("vm.memory-stats")?;
        let runs = map(vm)?;
        let ram: u64 = runs.iter().map(|run| run.size).sum();
        ensure!(ram == stats.ram_bytes, "the map has {ram} bytes and the statistics {}", stats.ram_bytes);
        full.map_runs = runs.len() as u64;
        full.shared_peak_bytes = full.shared_peak_bytes.max(stats.shared_bytes);
        let metrics = vm.api.get_text("vmm.metrics", "text/plain")?;
        full.metrics = metrics.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).count() as u64;
        ensure!(full.metrics > 0, "there are no metrics");
        let picture = vm.api.get_text("vm.memory-map", "image/svg+xml")?;
        ensure!(picture.contains("<svg") && picture.trim_end().ends_with("</svg>"), "the picture is no SVG");
        full.picture_bytes = picture.len() as u64;
        let path = vm.guest.folder().join("memory.svg");
        std::fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))
    })
}

/// The whole map, page by page.
fn map(vm: &Vm<'_>) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut endpoint = "vm.memory-map".to_owned();
    loop {
        let page: Map = vm.api.get(&endpoint)?;
        ensure!(!page.runs.is_empty() || page.next.is_none(), "a page of the memory map is empty, and there is more");
        runs.extend(page.runs);
        match page.next {
            Some(start) => endpoint = format!("vm.memory-map?start={start}"),
            None => return Ok(runs),
        }
    }
}

/// Presses the power button, and expects that the guest powers off and umbra ends with status 0.
pub fn power_off(vm: &mut Vm<'_>) -> Result<Duration> {
    step("powered off by the power button", || {
        let start = Instant::now();
        vm.ctl(&["power-button".into()])?;
        match vm.guest.wait_for_end(STEP)? {
            Some(status) if status.success() => Ok(start.elapsed()),
            Some(status) => bail!("umbra ended with {status} after the power button"),
            None => bail!("umbra did not end within {} s after the power button", STEP.as_secs()),
        }
    })
}
