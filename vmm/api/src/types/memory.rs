//! Umbra's own: memory, its states and their changes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmm::memory::{LATENCIES, MemoryStatistics};

/// The state of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Host user space can map it.
    Shared,
    /// No process can map it.
    Private,
    /// Still shared, and on its way to private: devices are refused.
    Converting,
}

/// A run of RAM in one state.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct MemoryRun {
    /// Its first address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Its state.
    pub state: State,
    /// What refines the state, if anything.
    pub tag: Option<u16>,
    /// Whether it is in the window that the operator may convert.
    pub window: bool,
}

/// The state of all RAM, or of a part.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct MemoryMap {
    /// Runs by address; what is not in one is no RAM, or was filtered out.
    pub runs: Vec<MemoryRun>,
    /// Where to go on (as `start`), if there is more.
    pub next: Option<u64>,
}

/// Figures about memory. Each is of its own moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct MemoryStats {
    /// All RAM, in bytes.
    pub ram_bytes: u64,
    /// RAM that is private, in bytes.
    pub private_bytes: u64,
    /// RAM that is shared, in bytes.
    pub shared_bytes: u64,
    /// Shared RAM on its way to private, in bytes.
    pub converting_bytes: u64,
    /// Conversions that the guest announced and that changed something.
    pub conversions_explicit: u64,
    /// Conversions that an access asked for.
    pub conversions_implicit: u64,
    /// The operator's and the VMM's own, such as that at launch.
    pub conversions_host: u64,
    /// Requests that were refused or failed.
    pub conversions_failed: u64,
    /// Seconds that conversions have spent waiting for devices.
    pub conversion_waits: u64,
    /// Accesses that devices were refused.
    pub accesses_refused: u64,
    /// Memory that pages have left and that is not given back yet, in bytes.
    pub discard_backlog_bytes: u64,
    /// How often the host failed to take memory back.
    pub discards_failed: u64,
    /// How long conversions took that changed something; of small ones a sample that stands for all.
    pub conversion_latency: Latency,
}

/// How long things took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct Latency {
    /// Entry `n` counts what took less than 2^n microseconds and is in no entry before it; the last one counts all the rest.
    pub counts: [u64; LATENCIES],
    /// All of them together, in nanoseconds.
    pub sum_ns: u64,
}

impl From<MemoryStatistics> for MemoryStats {
    fn from(from: MemoryStatistics) -> Self {
        Self {
            ram_bytes: from.ram_bytes,
            private_bytes: from.private_bytes,
            shared_bytes: from.shared_bytes,
            converting_bytes: from.converting_bytes,
            conversions_explicit: from.conversions_explicit,
            conversions_implicit: from.conversions_implicit,
            conversions_host: from.conversions_host,
            conversions_failed: from.conversions_failed,
            conversion_waits: from.conversion_waits,
            accesses_refused: from.accesses_refused,
            discard_backlog_bytes: from.discard_backlog_bytes,
            discards_failed: from.discards_failed,
            conversion_latency: Latency {
                counts: from.conversion_latency.counts,
                sum_ns: from.conversion_latency.sum_ns,
            },
        }
    }
}

/// What is to become of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Contents {
    /// They may be lost: a conversion gives back the memory that holds them.
    Discard,
}

/// A conversion that the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversionRequest {
    /// The first address, on the border of a page, in the window.
    pub gpa: u64,
    /// Bytes, a whole number of pages.
    #[schema(minimum = 1)]
    pub size: u64,
    /// The state to convert to: shared or private.
    pub to: State,
    /// That the contents may be lost.
    pub contents: Contents,
}

/// What became of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// What changed its state reads as zeros now; what had the state already is as it was.
    Discarded,
    /// All of it had the state already, and is as it was.
    Kept,
}

/// What came of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct ConversionAnswer {
    /// The first address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// The state that all of it has now.
    pub state: State,
    /// Bytes that changed their state.
    pub changed_bytes: u64,
    /// What became of the contents.
    pub contents: Fate,
}

/// What conversions may do, by what asks for them. Each is `allow`, `refuse`, or a number a second such as `100/s`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// What the guest announces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(allow|refuse|[1-9][0-9]{0,8}/s)$")]
    pub explicit: Option<String>,
    /// What an access asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(allow|refuse|[1-9][0-9]{0,8}/s)$")]
    pub implicit: Option<String>,
    /// What the operator asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(allow|refuse|[1-9][0-9]{0,8}/s)$")]
    pub host: Option<String>,
}
