//! Figures about guest memory. Reading them costs the same for any map, and counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arch::x86_64::private_faults::ConversionKind;
use hypervisor::GpaRange;
use serde::Serialize;

use super::GuestRam;
use super::discards::AT_ONCE;

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
    /// How long conversions took that changed something, as an estimate.
    pub conversion_latency: LatencyHistogram,
}

/// How long conversions took, from the moment the policy let them go on until the guest could: waiting for devices is in it,
/// a discard behind the reply is not.
///
/// Reading the clock twice is a tenth of the engine's own work on one page. So of a guest's small conversions (below 256
/// KiB) that meet nobody only the first 16 are timed, and then one of each 16, at no regular distance, which counts for all
/// of these. What waits for a device, for another conversion or for a discard is always timed, from there on at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LatencyHistogram {
    /// Entry `n` counts those of less than 2^n microseconds that no entry before it counts. The last one counts all the rest.
    pub counts: [u64; LATENCIES],
    /// All of them together, in nanoseconds.
    pub sum_ns: u64,
}

/// Entries of a histogram: the last but one ends at 2^22 microseconds, some four seconds.
pub const LATENCIES: usize = 24;

impl LatencyHistogram {
    /// The entry that counts a conversion of this length.
    fn entry(latency: Duration) -> usize {
        let bits = u128::BITS - latency.as_micros().leading_zeros();
        (bits as usize).min(LATENCIES - 1)
    }
}

/// What is counted.
#[derive(Default)]
pub(super) struct Counters {
    conversions: [AtomicU64; 3],
    /// Small ones of the guest's.
    small: AtomicU64,
    latencies: [AtomicU64; LATENCIES],
    latency_sum: AtomicU64,
    failed: AtomicU64,
    waits: AtomicU64,
}

/// One small conversion in so many is timed.
const SAMPLE: u64 = 16;

/// The time of a conversion, if it is taken: since when, and how many conversions it stands for.
pub(super) struct Stopwatch(Option<(Instant, u64)>);

impl Stopwatch {
    /// It waits for somebody, and is no longer like the others of its size.
    #[cold]
    pub(super) fn waits(&mut self) {
        let start = self.0.map_or_else(Instant::now, |(start, _)| start);
        self.0 = Some((start, 1));
    }
}

impl Counters {
    /// Starts a watch, if a conversion of this kind and range is to be timed.
    #[inline]
    pub(super) fn stopwatch(&self, kind: ConversionKind, range: GpaRange) -> Stopwatch {
        let weight = if range.len() < AT_ONCE && kind != ConversionKind::Host {
            weight(self.small.load(Ordering::Relaxed))
        } else {
            Some(1)
        };
        Stopwatch(weight.map(|weight| (Instant::now(), weight)))
    }

    #[inline]
    pub(super) fn count_conversion(&self, kind: ConversionKind, range: GpaRange, Stopwatch(watch): Stopwatch) {
        self.conversions[kind as usize].fetch_add(1, Ordering::Relaxed);
        if range.len() < AT_ONCE && kind != ConversionKind::Host {
            // A count that is lost in a race makes another choice, no better or worse.
            self.small.store(self.small.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        if let Some((start, weight)) = watch {
            self.count_latency(start, weight);
        }
    }

    #[cold]
    fn count_latency(&self, start: Instant, weight: u64) {
        let latency = start.elapsed();
        self.latencies[LatencyHistogram::entry(latency)].fetch_add(weight, Ordering::Relaxed);
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).saturating_mul(weight);
        self.latency_sum.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many small conversions this one stands for, if it is timed. Behind the first few it is one of each [`SAMPLE`], at a
/// place that changes: guests repeat themselves.
#[inline]
fn weight(number: u64) -> Option<u64> {
    let (group, place) = (number / SAMPLE, number % SAMPLE);
    // The upper bits of a product with an odd number without pattern are as good as random.
    let chosen = group.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SAMPLE.trailing_zeros());
    match group {
        0 => Some(1),
        _ => (place == chosen).then_some(SAMPLE),
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
            conversion_latency: LatencyHistogram {
                counts: std::array::from_fn(|entry| self.counters.latencies[entry].load(Ordering::Relaxed)),
                sum_ns: self.counters.latency_sum.load(Ordering::Relaxed),
            },
        }
    }

    /// Counts a request that was refused before it became a conversion.
    pub(crate) fn count_refusal(&self) {
        self.counters.count_failure();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_for_all_and_for_each_pattern_alike() {
        let weights: Vec<u64> = (0..160_000).map(|number| weight(number).unwrap_or(0)).collect();
        assert_eq!(weights.iter().sum::<u64>(), 160_000);
        assert_eq!(weights[..16], [1; 16]);
        // Whatever a guest repeats, each part of it is met as often as the others, give or take a tenth.
        for period in [2, 3, 4, 8, 16, 17, 32] {
            for part in 0..period {
                let met: u64 = weights.iter().skip(part).step_by(period).sum();
                let expected = 160_000 / period as u64;
                assert!(met.abs_diff(expected) <= expected / 10, "{met} instead of {expected}: {part} of {period}");
            }
        }
    }

    #[test]
    fn each_latency_has_its_entry() {
        let entry = |nanoseconds| LatencyHistogram::entry(Duration::from_nanos(nanoseconds));
        assert_eq!([0, 999, 1_000, 1_999, 2_000, 4_000, 7_999, 8_000].map(entry), [0, 0, 1, 1, 2, 3, 3, 4]);
        assert_eq!(entry((1 << 22) * 1_000 - 1), LATENCIES - 2);
        assert_eq!(entry((1 << 22) * 1_000), LATENCIES - 1);
        assert_eq!(entry(u64::MAX), LATENCIES - 1);
    }
}
