//! What the thread of a balloon does: gives back the pages that requests name.

use std::ops::ControlFlow;
use std::sync::Arc;

use hypervisor::{GpaRange, PAGE_SIZE};

use super::{Counters, DEFLATE, INFLATE, MAX_PAGES, MAX_REPORT, REPORT, ReclaimPages};
use crate::devices::virtio::ring::{Chain, Ring};
use crate::devices::virtio::worker::{Service, Sources};
use crate::memory::guarded::DeviceView;

/// The queues, by their numbers, and what works on them.
pub(super) struct Queues {
    pub rings: Vec<(u64, Ring)>,
    pub view: DeviceView,
    pub pages: Arc<dyn ReclaimPages>,
    pub counters: Arc<Counters>,
}

impl Service for Queues {
    fn ready(&mut self, token: u64, sources: &Sources) -> ControlFlow<()> {
        let Self { rings, view, pages, counters } = self;
        if let Some((_, ring)) = rings.iter_mut().find(|(number, _)| *number == token) {
            ring.serve(view, sources, |chain| {
                let done = match token {
                    INFLATE => inflate(view, &**pages, counters, &chain),
                    DEFLATE => deflate(view, counters, &chain),
                    REPORT => report(&**pages, counters, &chain),
                    _ => None,
                };
                if done.is_none() {
                    counters.failed.add(1);
                }
                0
            });
        }
        ControlFlow::Continue(())
    }
}

/// The guest gives pages back. `None` if not all of them are such as may be.
fn inflate(view: &DeviceView, pages: &dyn ReclaimPages, counters: &Counters, chain: &Chain) -> Option<()> {
    let mut numbers = page_numbers(view, counters, chain)?;
    numbers.sort_unstable();
    let mut done = Some(());
    for run in numbers.chunk_by(|page, next| *next == page.wrapping_add(1)) {
        let range = GpaRange::new(u64::from(run[0]) * PAGE_SIZE, run.len() as u64 * PAGE_SIZE).ok();
        match range.map(|range| pages.reclaim(range)) {
            Some(Ok(())) => counters.inflated.add(run.len() as u64 * PAGE_SIZE),
            _ => done = None,
        }
    }
    done
}

/// The guest takes pages again: their memory comes as it uses them.
fn deflate(view: &DeviceView, counters: &Counters, chain: &Chain) -> Option<()> {
    let numbers = page_numbers(view, counters, chain)?;
    counters.deflated.add(numbers.len() as u64 * PAGE_SIZE);
    Some(())
}

/// The guest reports memory that it does not use until the chain is used: the buffers themselves.
fn report(pages: &dyn ReclaimPages, counters: &Counters, chain: &Chain) -> Option<()> {
    if !chain.whole || chain.readable.size() > 0 || chain.writable.size() > MAX_REPORT {
        return None;
    }
    let mut done = Some(());
    for (gpa, size) in chain.writable.iter() {
        match GpaRange::new(gpa.0, size as u64).map(|range| pages.reclaim(range)) {
            Ok(Ok(())) => counters.reported.add(size as u64),
            _ => done = None,
        }
    }
    done
}

/// The pages that a request names, by their numbers (virtio 1.3, 5.5.6).
fn page_numbers(view: &DeviceView, counters: &Counters, chain: &Chain) -> Option<Vec<u32>> {
    let size = usize::try_from(chain.readable.size()).ok()?;
    if !chain.whole || !size.is_multiple_of(size_of::<u32>()) || size > MAX_PAGES * size_of::<u32>() {
        return None;
    }
    let mut buffers = chain.readable.guard(view).inspect_err(|_| counters.refused.add(1)).ok()?;
    let mut bytes = vec![0; size];
    buffers.copy_out(&mut bytes);
    Some(bytes.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect())
}
