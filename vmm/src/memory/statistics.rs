//! Figures about guest memory. Reading them costs the same for any map, and counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use arch::x86_64::private_faults::ConversionKind;
use serde::Serialize;

use super::GuestRam;

/// Figures about guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryStatistics {
    /// All RAM, in bytes.
    pub ram_bytes: u64,
    /// RAM that is private now, in bytes.
    pub private_bytes: u64,
    /// RAM that is shared now, in bytes.
    pub shared_bytes: u64,
    /// Shared RAM on its way to private, in bytes.
    pub converting_bytes: u64,
    /// Conversions that the guest announced and that changed something.
    pub conversions_explicit: u64,
    /// Conversions that an access asked for.
    pub conversions_implicit: u64,
    /// Conversions of the VMM's own, such as that at launch.
    pub conversions_host: u64,
    /// Requests that were refused or failed.
    pub conversions_failed: u64,
    /// Seconds that conversions have spent waiting for devices, one for each report.
    pub conversion_waits: u64,
    /// Accesses that devices were refused.
    pub accesses_refused: u64,
    /// Memory that pages have left and that is not given back yet, in bytes.
    pub discard_backlog_bytes: u64,
    /// How often the host failed to take memory back.
    pub discards_failed: u64,
}

/// What is counted.
#[derive(Default)]
pub(super) struct Counters {
    conversions: [AtomicU64; 3],
    failed: AtomicU64,
    waits: AtomicU64,
}

impl Counters {
    pub(super) fn count_conversion(&self, kind: ConversionKind) {
        self.conversions[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }
}

impl GuestRam {
    /// Figures, each of its own moment; those of the map belong together when no conversion is under way.
    pub fn statistics(&self) -> MemoryStatistics {
        let map = self.devices.guards().plane().statistics();
        let discards = self.discards.statistics();
        let conversions = |kind| self.counters.conversions[kind as usize].load(Ordering::Relaxed);
        MemoryStatistics {
            ram_bytes: map.total_bytes,
            private_bytes: map.private_bytes,
            shared_bytes: map.total_bytes - map.private_bytes,
            converting_bytes: map.converting_bytes,
            conversions_explicit: conversions(ConversionKind::Explicit),
            conversions_implicit: conversions(ConversionKind::Implicit),
            conversions_host: conversions(ConversionKind::Host),
            conversions_failed: self.counters.failed.load(Ordering::Relaxed),
            conversion_waits: self.counters.waits.load(Ordering::Relaxed),
            accesses_refused: self.devices.refused_accesses(),
            discard_backlog_bytes: discards.owed_bytes,
            discards_failed: discards.failures,
        }
    }

    /// Counts a request that was refused before it became a conversion.
    pub(crate) fn count_refusal(&self) {
        self.counters.count_failure();
    }
}
