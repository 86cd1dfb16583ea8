//! Requests that are no configuration.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to resize a machine to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Refused: processors are neither added nor removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub desired_vcpus: Option<u8>,
    /// Refused: memory does not grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_ram: Option<u64>,
    /// Bytes that the guest is to give back, where there is a balloon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_balloon: Option<u64>,
}

/// Which device to remove.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveDevice {
    /// Its name.
    pub id: String,
}
