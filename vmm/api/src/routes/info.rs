//! `GET /vm.info`

use axum::Json;
use axum::extract::State;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::types::VmInfo;

/// Tells of the machine: its configuration, where it is in its life, its devices.
#[utoipa::path(
    get,
    path = "/vm.info",
    operation_id = "vm.info",
    responses((status = 200, description = "The machine.", body = VmInfo), Errors)
)]
pub async fn info(State(api): State<Api>) -> Result<Json<VmInfo>, ApiError> {
    blocking(api, |api| api.info()).await.map(Json)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn shows_the_configuration_as_it_was_given() {
        let server = Server::new();
        server.get("/vm.info").await.fails(404, "there is no machine");
        let given = created(&server).await;
        let info = server.get("/vm.info").await.json();
        assert_eq!(info["config"], given);
        assert_eq!(info["memory_actual_size"], 64 << 20);
    }
}
