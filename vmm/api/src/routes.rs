//! All endpoints. Each is one file with one handler, which has its path, its documentation and its test; here it is one line.
//! The document (`/api/v1/openapi.json`) and the client follow from this list.

mod add_disk;
mod add_net;
mod add_vsock;
mod boot;
mod counters;
mod create;
mod delete;
mod events;
mod info;
mod memory_convert;
pub(crate) mod memory_map;
mod memory_policy;
mod memory_policy_set;
mod memory_stats;
mod metrics;
mod nmi;
mod openapi;
mod pause;
mod ping;
mod power_button;
mod reboot;
mod remove_device;
mod resize;
mod resume;
mod shutdown;
pub mod unsupported;
mod vmm_shutdown;

use std::sync::Arc;

use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{ApiError, Controller};

/// What handlers work with.
pub type Api = Arc<Controller>;

/// The endpoints, below [`crate::ROOT`].
pub(crate) fn all() -> OpenApiRouter<Api> {
    unsupported::add(OpenApiRouter::new())
        .routes(routes!(ping::ping))
        .routes(routes!(vmm_shutdown::vmm_shutdown))
        .routes(routes!(metrics::metrics))
        .routes(routes!(openapi::openapi))
        .routes(routes!(create::create))
        .routes(routes!(delete::delete))
        .routes(routes!(boot::boot))
        .routes(routes!(shutdown::shutdown))
        .routes(routes!(reboot::reboot))
        .routes(routes!(pause::pause))
        .routes(routes!(resume::resume))
        .routes(routes!(power_button::power_button))
        .routes(routes!(nmi::nmi))
        .routes(routes!(info::info))
        .routes(routes!(counters::counters))
        .routes(routes!(add_disk::add_disk))
        .routes(routes!(add_net::add_net))
        .routes(routes!(add_vsock::add_vsock))
        .routes(routes!(remove_device::remove_device))
        .routes(routes!(resize::resize))
        .routes(routes!(memory_map::memory_map))
        .routes(routes!(memory_stats::memory_stats))
        .routes(routes!(memory_convert::memory_convert))
        .routes(routes!(memory_policy::memory_policy, memory_policy_set::memory_policy_set))
        .routes(routes!(events::events))
}

/// Does something that may wait on a thread where waiting is fine.
pub(crate) async fn blocking<T: Send + 'static>(
    api: Api,
    work: impl FnOnce(&Api) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(move || work(&api)).await;
    done.unwrap_or_else(|error| {
        Err(ApiError::caused(StatusCode::INTERNAL_SERVER_ERROR, "the request was not finished: this is a bug", &error))
    })
}

/// The answer without a body.
pub(crate) const DONE: StatusCode = StatusCode::NO_CONTENT;
