//! Shows the nested kernel's console while it runs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(100);

/// Follows the file until it is dropped.
#[derive(Debug)]
pub struct Follower {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Copies what is added to the file to standard error.
pub fn follow(path: &Path) -> Follower {
    let over = Arc::new(AtomicBool::new(false));
    let (path, ends) = (path.to_path_buf(), Arc::clone(&over));
    let thread = std::thread::spawn(move || copy(path, &ends));
    Follower { over, thread: Some(thread) }
}

fn copy(path: PathBuf, over: &AtomicBool) {
    let mut file = None;
    loop {
        let last = over.load(Ordering::Relaxed);
        if file.is_none() {
            file = File::open(&path).ok(); // QEMU creates it in a moment
        }
        let mut text = Vec::new();
        if let Some(file) = &mut file
            && (file.read_to_end(&mut text).is_err() || std::io::stderr().write_all(&text).is_err())
        {
            return;
        }
        if last {
            return;
        }
        std::thread::sleep(INTERVAL);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
